"""Room on the device for an engine that wakes.

vLLM takes back what slept piece by piece, and a device that is full half way is the end of the
engine. Neighbours may have grown into what it left. So the ledger is told first, they give way, and
the engine wakes once everything has room, one engine at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kvcached import _C
from kvcached.device_room import take_when_there_is_room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvcached_vllm.working_memory import WorkingMemory

_log = logging.getLogger("vllm.kvcached")

#: How long room is wanted for what neighbours will work with as well, in seconds: they take it
#: without asking, perhaps while this engine wakes. On a crowded device it may never all be there.
_FOR_NEIGHBOURS = 10.0
#: Between two looks at how much has come back, in seconds.
_FOLLOW = 0.02
_WORK = "wake-up"


class _NoRoom(Exception):
    """Not yet."""


class WakingRoom:
    """Where one worker's engine finds room to wake."""

    def __init__(self, working: WorkingMemory, row: str, device: torch.device) -> None:
        """`row`: the path of the worker's row."""
        facts = _C.Row.attach(row).describe()
        self._working = working
        self._ledger = Path(facts["ledger"])
        self._slot = facts["lease_slot"]
        self._device = device

    @contextlib.contextmanager
    def entered(self, missing: Callable[[], int]) -> Iterator[None]:
        """Entered once the device has room for all of what is `missing`, in bytes, which becomes
        less as it comes back. Where there is none within two minutes, what follows is tried all the
        same, and fails as it would without kvcached. Where nothing is missing, it costs nothing;
        otherwise up to half a second, until the ledger has looked at the device again."""
        size = missing()
        if size == 0:
            yield
            return
        with self._alone(size):
            try:
                self._wait(size)
                with self._following(missing):
                    yield
            finally:
                self._working.want_beside(0)

    @contextlib.contextmanager
    def _alone(self, size: int) -> Iterator[None]:
        # Two that wake at once would each see the room that only one of them can have. The lock is
        # another kind than the ledger's own, and ends with the process.
        with self._ledger.open("rb") as file:

            def lock() -> None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise _NoRoom from None

            take_when_there_is_room(lock, _NoRoom, size, _WORK, _log)
            yield

    def _wait(self, size: int) -> None:
        self._working.want_beside(size)
        told = time.monotonic()
        ledger = _C.Ledger.open(str(self._ledger))

        def look() -> None:
            waited = time.monotonic() - told
            facts = ledger.describe()
            # Until the ledger has looked at the device, neighbours grow as if nobody woke.
            if facts["sampled_seconds_ago"] >= waited:
                raise _NoRoom
            theirs = sum(
                lease["reserve_bytes"]
                for lease in facts["leases"]
                if lease["slot"] != self._slot and waited < _FOR_NEIGHBOURS
            )
            if torch.cuda.mem_get_info(self._device)[0] < size + theirs:
                raise _NoRoom

        take_when_there_is_room(look, _NoRoom, size, _WORK, _log)

    @contextlib.contextmanager
    def _following(self, missing: Callable[[], int]) -> Iterator[None]:
        # What has come back is no longer free, and would be counted twice.
        done = threading.Event()

        def follow() -> None:
            while not done.wait(_FOLLOW):
                self._working.want_beside(missing())

        thread = threading.Thread(target=follow, name="kvcached-waking", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
