"""Tells the pager which steps are launched on this rank, and when the device is done."""

from __future__ import annotations

import torch

from kvcached import _C


class LaunchMarks:
    """Marks launched steps. On an accelerator each mark records an event behind the step."""

    def __init__(self, pager: _C.Pager, device: torch.device) -> None:
        self._pager = pager
        self._device = device
        self._on_device = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._next = 0
        self._last: torch.cuda.Event | None = None
        self._launching = False

    @property
    def busy(self) -> bool:
        """Whether a step is being launched, or the device is not done with the last one. May be
        asked on any thread."""
        return self._launching or not (self._last is None or self._last.query())

    def begin(self, step: int) -> None:
        """Step `step` is about to be launched on this thread and its stream; mark() follows. Memory
        that is the steps' to zero is zeroed ahead of it. Raises kvcached.Error where the driver
        refuses that."""
        self._launching = True
        if self._pager.zeroes_due:
            self._pager.zero(step, self._stream_of_steps())

    def _stream_of_steps(self) -> int:
        if not self._on_device:
            return 0
        stream = torch.cuda.current_stream(self._device)
        # vLLM moves a thread that has set no stream to one of its own when it first looks for it,
        # perhaps in the middle of a step, and up to 0.26 without waiting for the one before (0.26
        # utils/torch_utils.py, current_stream). It stays on a stream that was set.
        torch.cuda.set_stream(stream)
        return int(stream.cuda_stream)

    def mark(self, step: int) -> None:
        """Step `step` is launched; to be called on the thread and stream that launched it."""
        if not self._on_device:
            self._pager.launched(step)
            self._launching = False
            return
        # The pager remembers this many launches, so that an older event is free to record.
        if len(self._events) <= _C.Pager.max_launches:
            self._events.append(torch.cuda.Event())
        event = self._events[self._next]
        self._next = (self._next + 1) % (_C.Pager.max_launches + 1)
        event.record()
        self._pager.launched(step, event.cuda_event)
        self._last = event
        self._launching = False
