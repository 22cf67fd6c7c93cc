"""What an engine works with beside weights and cache: given back while it is idle.

PyTorch's allocator keeps what activations have taken. A neighbour could use it while this engine
has nothing to do, so it goes back, and the ledger keeps room for it; before the next batch it is
taken again, all at once, where an engine can still wait for it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from kvcached import _C

_log = logging.getLogger("sglang.kvcached")

#: Between two tries while the device has no room, in seconds.
_RETRY = 0.01
#: Between two lines about it, in seconds.
_SAY_AGAIN = 10.0
#: After this, the batch is tried all the same, and fails as it would without kvcached; in seconds.
_PATIENCE = 120.0


class WorkingMemory:
    """One scheduler's working memory on a GPU. For the scheduler's thread alone."""

    def __init__(self, pager: _C.Pager, device: torch.device, stream: Any) -> None:
        """`stream`: where batches run, None for the current one: PyTorch's allocator keeps what was
        taken on a stream for that stream."""
        self._pager = pager
        self._device = device
        self._stream = stream
        self._bytes = 0
        self._given_back = False
        self._worked = False

    def hold(self) -> None:
        """Called before each batch; returns once the device has room for it."""
        self._worked = True
        if not self._given_back:
            return
        self._given_back = False
        if self._bytes:
            self._take()
            self._pager.reserve(0)

    def give_back(self) -> None:
        """Called while the engine is idle: gives back what nobody uses, once."""
        if self._given_back:
            return
        self._given_back = True
        before = torch.cuda.memory_reserved(self._device)
        if self._worked:
            # Room for it is kept first, so that no cache grows into it.
            kept = before - torch.cuda.memory_allocated(self._device)
            self._pager.reserve(max(kept, self._bytes))
        torch.cuda.empty_cache()
        if self._worked:
            freed = before - torch.cuda.memory_reserved(self._device)
            self._bytes = max(freed, self._bytes)
            self._pager.reserve(self._bytes)

    def _take(self) -> None:
        began = said = time.monotonic()
        while True:
            try:
                with torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
                    # Freed at once: PyTorch's allocator keeps it for the batch.
                    torch.empty(self._bytes, dtype=torch.uint8, device=self._device)
                return
            except torch.cuda.OutOfMemoryError:
                now = time.monotonic()
                if now - began > _PATIENCE:
                    _log.error(
                        "kvcached: the device had no %d MiB for a batch in %d s",
                        self._bytes >> 20,
                        _PATIENCE,
                    )
                    return
                if now - said > _SAY_AGAIN:
                    said = now
                    _log.warning(
                        "kvcached: a batch waits for %d MiB beside the cache; the device is full",
                        self._bytes >> 20,
                    )
                time.sleep(_RETRY)
