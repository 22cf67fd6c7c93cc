"""Tells the pager which batches are launched on this rank, and when the device is done."""

from __future__ import annotations

from typing import Any

import torch

from kvcached import _C


class LaunchMarks:
    """Marks launched batches. On a GPU each mark records an event on the stream that runs them."""

    def __init__(self, pager: _C.Pager, device: torch.device) -> None:
        self._pager = pager
        self._on_device = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._next = 0

    def mark(self, step: int, stream: Any) -> None:
        """Batch `step` is launched. `stream`: SGLang's forward stream, None for the current one."""
        if not self._on_device:
            self._pager.launched(step)
            return
        # The pager remembers this many launches, so that an older event is free to record.
        if len(self._events) <= _C.Pager.max_launches:
            self._events.append(torch.cuda.Event())
        event = self._events[self._next]
        self._next = (self._next + 1) % (_C.Pager.max_launches + 1)
        event.record(stream) if stream is not None else event.record()
        self._pager.launched(step, event.cuda_event)
