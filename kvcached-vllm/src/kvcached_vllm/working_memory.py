"""Room on the device for what a step works with, beside weights and cache.

An engine's activations come from PyTorch's allocator, which keeps what it has taken and takes it
when a step first needs it: in the middle of the step, where a device that a neighbour has filled
means the end of the engine. Here it is taken before the step, all of it, and a step waits until it
is there. An idle engine gives it back.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from typing import TYPE_CHECKING, Protocol

import torch

from kvcached.device_room import take_when_there_is_room

if TYPE_CHECKING:
    from kvcached import _C

_log = logging.getLogger("vllm.kvcached")

#: How long an engine's device has nothing to do before it counts as idle, in seconds. With the
#: cache's own grace (memory_thread.GRACE) well within the second after which an idle engine holds
#: nothing.
IDLE_AFTER = 0.5
#: Above the peak that was seen, for what does not fit into the pieces that are free.
_MARGIN = 1.1
#: The thread that gives back ends within this, where the device is not stuck; in seconds.
_END_WITHIN = 10.0


class Launches(Protocol):
    """Who knows of the steps; see kvcached_vllm.launches.LaunchMarks."""

    @property
    def busy(self) -> bool:
        """Whether a step is being launched, or the device is not done with the last one."""


class WorkingMemory:
    """One worker's working memory: held while it works, given back when it is idle.

    hold() and release() are for the worker's thread; a thread of its own gives back.
    """

    def __init__(
        self, pager: _C.Pager, device: torch.device, peak_bytes: int, launches: Launches
    ) -> None:
        """`peak_bytes`: the most that a step was seen to take."""
        self._pager = pager
        self._device = device
        self._launches = launches
        self._bytes = int(peak_bytes * _MARGIN)
        self._lock = threading.Lock()
        self._held = False
        self._beside = 0
        self._last_step = time.monotonic()
        self._wake = threading.Event()
        self._stopping = False
        self._give_back()
        self._thread = threading.Thread(target=self._run, name="kvcached-idle", daemon=True)
        self._thread.start()
        # Nobody must be in PyTorch's native code while Python takes itself down.
        atexit.register(self.stop)

    def hold(self) -> None:
        """Called before each step; returns once the device has room for it."""
        # Held while the other thread gives back, too: a step must not take memory for held that is
        # just going.
        with self._lock:
            self._last_step = time.monotonic()
            if self._held:
                return
            taken = self._take()
            # Tried all the same where there was no room for long: not again by every step.
            self._held = True
            if taken:
                self._tell()
        self._wake.set()

    def release(self) -> None:
        """Gives back what PyTorch's allocator holds and nobody uses."""
        with self._lock:
            self._give_back()

    def want_beside(self, size: int) -> None:
        """Tells the ledger that this process will want `size` bytes of the device beside its cache
        and its working memory; 0 once it has them. Any thread."""
        with self._lock:
            self._beside = size
            self._tell()

    def stop(self) -> None:
        """Ends the thread; returns when it has ended, or stands behind a stuck device."""
        atexit.unregister(self.stop)
        self._stopping = True
        self._wake.set()
        self._thread.join(_END_WITHIN)
        if self._thread.is_alive():
            _log.error("kvcached: giving working memory back does not end; is the device stuck?")

    def _take(self) -> bool:
        full = torch.cuda.OutOfMemoryError
        return take_when_there_is_room(self._fill_allocator, full, self._bytes, "step", _log)

    def _fill_allocator(self) -> None:
        # Freed at once: PyTorch's allocator keeps it for the step.
        torch.empty(self._bytes, dtype=torch.uint8, device=self._device)

    def _give_back(self) -> None:
        # First, so that no cache grows into it.
        self._held = False
        self._tell()
        torch.cuda.empty_cache()

    def _tell(self) -> None:
        self._pager.reserve(self._beside + (0 if self._held else self._bytes))

    def _run(self) -> None:
        torch.cuda.set_device(self._device)
        while not self._stopping:
            self._wake.wait()
            self._wake.clear()
            while self._held and not self._stopping:
                time.sleep(IDLE_AFTER / 4)
                with self._lock:
                    # A step may take long, or stand in a collective until another rank has its
                    # memory: it needs its own, and giving back would wait for it.
                    if self._launches.busy:
                        self._last_step = time.monotonic()
                    elif time.monotonic() - self._last_step >= IDLE_AFTER:
                        self._give_back()
