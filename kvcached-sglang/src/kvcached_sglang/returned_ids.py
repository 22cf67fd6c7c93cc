"""Ids of pages on their way back from the engine's device."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kvcached import _C


class ReturnedIds:
    """Gives pages back to the pool once the host knows their ids.

    The engine frees pages by tensors on its device. Reading them would wait for the device, so
    they are copied in its own time, all that came between two batches at once; until then the pages
    are free, and not handed out.
    """

    def __init__(self, pool: _C.Pool, device: torch.device) -> None:
        self._pool = pool
        self._on_device = device.type == "cuda"
        self._gathered: list[torch.Tensor] = []
        self._waiting: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        self.pages = 0
        """Pages whose ids are on their way."""

    def put(self, ids: torch.Tensor) -> None:
        """Takes pages over; nobody may write to `ids` afterwards. Raises ValueError where one is
        not in use; on a GPU, settle() does."""
        if not self._on_device:
            self._pool.give(ids.contiguous())
            return
        self._gathered.append(ids)
        self.pages += ids.numel()

    def settle(self, wait: bool) -> None:
        """Gives back what has arrived; all of it where `wait`."""
        if self._gathered:
            self._send()
        while self._waiting:
            event, host = self._waiting[0]
            if wait:
                event.synchronize()
            elif not event.query():
                return
            self._waiting.popleft()
            self.pages -= host.numel()
            self._pool.give(host)

    def _send(self) -> None:
        gathered, self._gathered = self._gathered, []
        ids = gathered[0] if len(gathered) == 1 else torch.cat(gathered)
        host = torch.empty(ids.shape, dtype=torch.int64, pin_memory=True)
        host.copy_(ids, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._waiting.append((event, host))
