"""Watches a device's ledger from outside while engines share it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from kvcached import _C

if TYPE_CHECKING:
    from kvcached._C import LeaseDescription


@dataclass(frozen=True)
class Moment:
    """One look: bytes in use, what there is, and what each slot holds."""

    at: float
    used: int
    capacity: int
    held: tuple[int, ...]

    @property
    def adds_up(self) -> bool:
        return self.used == sum(self.held)


class LedgerWatch:
    """Looks every two milliseconds, between its start and its end as a context manager."""

    def __init__(self, folder: Path) -> None:
        (path,) = folder.glob("*.ledger")
        self.ledger = _C.Ledger.open(str(path))
        self.moments: list[Moment] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> LedgerWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.002):
            used, capacity, held = self.ledger.snapshot()
            self.moments.append(Moment(time.monotonic(), used, capacity, tuple(held)))

    def lease(self, group: str) -> LeaseDescription | None:
        """The only lease of a group, or None."""
        found = [lease for lease in self.ledger.describe()["leases"] if lease["group"] == group]
        return found[0] if found else None

    def held(self, group: str) -> int:
        """Bytes that a group holds now; 0 where it has no lease."""
        lease = self.lease(group)
        return lease["held_bytes"] if lease is not None else 0

    def wait_until_gone(self, group: str, seconds: float) -> float:
        """Wait until a group has no lease; return the seconds it took, or `seconds`."""
        began = time.monotonic()
        while self.lease(group) is not None and time.monotonic() - began < seconds:
            time.sleep(0.005)
        return time.monotonic() - began
