"""Hooks on the making of SGLang's KV pool and its allocator: both elastic, or neither."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from kvcached import _C, hooks
from kvcached import settings as kvcached_settings
from kvcached_sglang import (
    NotElastic,
    allocators,
    attachment,
    identity,
    reasons,
    say_once,
    sub_pools,
    unanimity,
)
from kvcached_sglang.allocation import TensorsOverRegion
from kvcached_sglang.memory import Place, RankMemory
from kvcached_sglang.page_supply import PageSupply
from kvcached_sglang.self_check import prove

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("sglang.kvcached")


@functools.cache
def settings() -> kvcached_settings.Settings:
    """The environment's settings; reads them once and says which variables it does not read."""
    loaded = kvcached_settings.load()
    _log.setLevel(loaded.log_level)
    for line in kvcached_settings.unread(os.environ):
        say_once(line)
    return loaded


@dataclass
class _Making:
    """The pools of one model while SGLang makes them."""

    place: Place
    made: list[tuple[Any, RankMemory]] = field(default_factory=list)
    """Pools and their memory."""
    reasons: list[str] = field(default_factory=list)


_making: _Making | None = None
_memories: list[RankMemory] = []
"""What lives as long as the process: tensors point into it."""


def memories_of_this_process() -> list[RankMemory]:
    """The memory of this process's elastic caches."""
    return _memories


def init_pools(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND ``_init_pools()``, of the model runner or, from 0.5.17 on, the cache configurator."""
    global _making
    if self.is_draft_worker or _making is not None:
        return original(self, *args, **kwargs)
    reason = attachment.missing_hook() or reason_against(self)
    ranks = attachment.ranks_of(self.server_args)
    if not unanimity.all_say(reason is None, ranks):
        stay_vanilla(reason or "another rank of this engine is not covered; it says why")
        return original(self, *args, **kwargs)
    _making = _Making(place_of(self))
    try:
        result = original(self, *args, **kwargs)
        allocator = (self if result is None else result).token_to_kv_pool_allocator
        elastic = bool(_making.made)
        if unanimity.all_say(elastic, ranks) != elastic:
            raise NotElastic(
                "kvcached: other ranks of this engine cannot be elastic; start with "
                "ENABLE_KVCACHED=false"
            )
        if not elastic:
            stay_vanilla(_making.reasons[0] if _making.reasons else "SGLang made no KV pool")
        else:
            attach(allocator, _making.made)
        return result
    finally:
        _making = None


def reason_against(builder: Any) -> str | None:
    """Why the pools that `builder` is about to make stay SGLang's own, or None."""
    return (
        reasons.configuration_reason(builder.server_args)
        or reasons.model_reason(builder)
        or reasons.shared_memory_reason(settings())
    )


def create_buffers(original: Callable[..., Any], self: Any) -> Any:
    """AROUND a KV pool's ``_create_buffers()``."""
    making = _making
    if making is None:
        return original(self)
    number = len(making.made)
    if number == making.place.pools:
        raise NotElastic(
            "kvcached: SGLang makes more KV pools for this model than expected; start with "
            "ENABLE_KVCACHED=false"
        )
    # Of a hybrid pool's two parts, none is elastic without the other.
    reason = making.reasons[0] if making.reasons else reasons.pool_reason(self)
    if reason is None:
        try:
            driver = driver_of(self.device)
        except _C.Error as error:
            reason = f"no usable driver: {error}"
    if reason is not None:
        if making.made:
            raise NotElastic(f"kvcached: {reason}; start with ENABLE_KVCACHED=false")
        making.reasons.append(reason)
        return original(self)
    memory = RankMemory(self, driver, settings(), replace(making.place, pool=number))
    with TensorsOverRegion(memory.buffers, memory.region, self.store_dtype) as mode:
        result = original(self)
    if mode.unused:
        raise NotElastic(
            "kvcached: SGLang did not allocate its KV pool where it was expected; start with "
            "ENABLE_KVCACHED=false"
        )
    making.made.append((self, memory))
    return result


def profile_available_bytes(original: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """AROUND ``_profile_available_bytes()``: address space for more than may ever be held would be
    of no use, and without it SGLang cuts its requests to what can fit."""
    return bounded(original(*args, **kwargs))


def bounded(found: int) -> int:
    """Bytes of address space where SGLang found room for so many."""
    bounds = [bound for bound in (settings().limit, settings().capacity) if bound]
    # Memory comes in whole extents, and page 0 takes one.
    return min([found, *(bound - bound // 16 for bound in bounds)])


def driver_of(device: Any) -> _C.Driver:
    """The driver of this process's device; SGLang's pools name its kind alone, and each rank makes
    its own GPU CUDA's current one. Raises _C.Error where it cannot be used."""
    kind = torch.device(device).type
    return hooks.driver_for(kind, torch.cuda.current_device() if kind == "cuda" else 0)


def stay_vanilla(reason: str) -> None:
    """Says why; raises NotElastic where that is not allowed."""
    if settings().required:
        raise NotElastic(f"kvcached: KVCACHED_REQUIRED=true, but: {reason}")
    say_once(f"kvcached: vanilla: {reason}")


def place_of(builder: Any) -> Place:
    """Whose pools `builder` makes."""
    arguments = builder.server_args
    rank, first_device = attachment.rank_of(builder)
    return Place(
        identity.instance_of(arguments, first_device),
        rank,
        attachment.ranks_of(arguments),
        builder.model_config.context_len,
        pools=2 if builder.is_hybrid_swa else 1,
    )


def memory_for(pool: Any, place: Place) -> RankMemory:
    """Memory for a pool without tensors. Raises NotElastic where there is none."""
    try:
        driver = driver_of(pool.device)
    except _C.Error as error:
        raise NotElastic(f"kvcached: no usable driver: {error}") from None
    return RankMemory(pool, driver, settings(), place)


def attach(allocator: Any, made: list[tuple[Any, RankMemory]]) -> None:
    """Lets an allocator that has handed out nothing hand out what has memory. `made`: its pools and
    their memory. Raises NotElastic where these are not as expected."""
    reason = reasons.allocator_reason(allocator)
    parts = sub_pools.parts_of(allocator)
    memory_of = {id(pool): memory for pool, memory in made}
    pools = sub_pools.pools_of(allocator.get_kvcache())
    if reason is None and (
        {id(pool) for pool in pools} != set(memory_of)
        or [part.size for part in parts] != [pool.size for pool in pools]
    ):
        reason = "SGLang's allocator and its KV pool differ"
    if reason is not None:
        # The tensors are there already, and this allocator would hand out what has no memory.
        raise NotElastic(f"kvcached: {reason}; start with ENABLE_KVCACHED=false")
    names = sub_pools.NAMES if len(parts) > 1 else ("",)
    for part, pool, name in zip(parts, pools, names, strict=True):
        _put_under(part, pool, memory_of[id(pool)], name)


def _put_under(allocator: Any, pool: Any, memory: RankMemory, name: str) -> None:
    wanted = settings()
    native = _C.Pool([memory.path], wanted.min_reserved_pages, wanted.max_reserved_pages)
    supply = PageSupply(native, memory.region.device, allocator.page_size)
    allocators.put_under(allocator, supply)
    _memories.append(memory)
    prove(allocator, pool, supply)
    if memory.place.rank == 0:
        for line in memory.describe(name):
            _log.info(line)
