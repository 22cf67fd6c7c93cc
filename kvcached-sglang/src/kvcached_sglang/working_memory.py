"""What an engine works with beside weights and cache: given back while it is idle.

PyTorch's allocator keeps what activations have taken. A neighbour could use it while this engine
has nothing to do, so it goes back, and the ledger keeps room for it; before the next batch it is
taken again, all at once, where an engine can still wait for it.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import torch

from kvcached.device_room import take_when_there_is_room

if TYPE_CHECKING:
    from kvcached import _C

_log = logging.getLogger("sglang.kvcached")


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
            full = torch.cuda.OutOfMemoryError
            take_when_there_is_room(self._fill_allocator, full, self._bytes, "batch", _log)
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

    def _fill_allocator(self) -> None:
        with torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            # Freed at once: PyTorch's allocator keeps it for the batch.
            torch.empty(self._bytes, dtype=torch.uint8, device=self._device)
