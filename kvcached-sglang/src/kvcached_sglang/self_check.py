"""At start: commits, writes, reads back and releases through the engine's own allocator.

SGLang logs what goes wrong with a plugin and goes on; so the plugin shows that it works before the
first request does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from kvcached_sglang import NotElastic

if TYPE_CHECKING:
    from kvcached_sglang.page_supply import PageSupply

#: How long memory may take to go back, in seconds.
_PATIENCE = 5.0


def prove(allocator: Any, pool: Any, supply: PageSupply) -> None:
    """Raises NotElastic where the allocator's pages are not ours, or do not hold data."""
    native = supply.pool
    before = native.usable_extents
    # Beyond what is always there, so that memory must be committed.
    pages = min(native.num_free + 1, supply.pages)
    tokens = pages * supply.page_size
    ids = allocator.alloc(tokens)
    _check(ids is not None and ids.numel() == tokens, "its allocator gave no pages")
    grown = native.usable_extents > before or pages == supply.pages
    _check(grown, "its allocator took no memory")
    planes = _planes(pool)
    pattern = torch.arange(tokens, device=ids.device).remainder(251).to(torch.uint8)
    for plane in planes:
        _bytes(plane)[ids] = pattern[:, None]
    for plane in planes:
        _check(bool((_bytes(plane)[ids] == pattern[:, None]).all()), "its tensors hold no data")
    for plane in planes:
        _bytes(plane)[ids] = 0
    allocator.free(ids)
    supply.clear()
    _check(supply.used == 0, "pages that were freed did not come back")
    _wait_for_release(supply, before)


def _planes(pool: Any) -> list[torch.Tensor]:
    if hasattr(pool, "kv_buffer"):
        return [pool.kv_buffer[0], pool.kv_buffer[-1]]
    return [pool.k_buffer[0], pool.k_buffer[-1], pool.v_buffer[0], pool.v_buffer[-1]]


def _bytes(plane: torch.Tensor) -> torch.Tensor:
    return plane.flatten(1).view(torch.uint8)


def _wait_for_release(supply: PageSupply, before: int) -> None:
    native = supply.pool
    deadline = time.monotonic() + _PATIENCE
    while True:
        native.balance(True)
        if not native.in_flight and native.usable_extents <= before + native.slack_target:
            return
        _check(time.monotonic() < deadline, "memory that was freed did not go back")
        native.wait(0.05)


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise NotElastic(
            f"kvcached: the start-up check failed: {otherwise}; start with ENABLE_KVCACHED=false"
        )
