"""When the leases of an engine are back: looked at in the ledgers, beside neighbours who look after
them as other engines' pagers do."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.pagers import PATIENCE, Slow
from benchmarks.rank_pagers import Rank, end
from benchmarks.shapes import BLOCK_MAJOR, plan_of
from kvcached import _C, inventory, shm

_GROUP = "neighbour"
#: Between two looks, in seconds.
_LOOK = 0.005


def _serve(rank: Rank, rows: Path, door: Connection) -> None:
    driver = rank.driver()
    pager = _C.Pager(
        driver,
        plan_of(BLOCK_MAJOR, driver).geometry(2),
        str(rows / f"{_GROUP}.{rank.ordinal}.row"),
        _GROUP,
        ledger=str(shm.ledger_path(rows, driver.device_id)),
        terms=_C.LeaseTerms(_GROUP, str(rank.ordinal)),
    )
    pager.start()
    door.send("ready")
    with suppress(EOFError):
        door.recv()  # until the other side is closed
    pager.stop()


@contextmanager
def neighbours(kind: str, devices: int, rows: Path) -> Iterator[None]:
    """Another engine's pager on every device, one extent large. Raises Slow."""
    context = multiprocessing.get_context("spawn")
    pairs = []
    try:
        for ordinal in range(devices):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(Rank(kind, ordinal), rows, theirs), daemon=True
            )
            pairs.append((ours, process))
            process.start()
            theirs.close()
        for door, _ in pairs:
            if not door.poll(PATIENCE):
                raise Slow("a neighbour did not start")
            door.recv()
        yield
    finally:
        end([door for door, _ in pairs], [process for _, process in pairs])


class LeaseEnd:
    """The leases of the one engine beside the neighbours."""

    def __init__(self, rows: Path) -> None:
        self._rows = rows
        self.first = self._held()
        """Bytes by rank when the look began."""

    def seconds_until_back(self, since: float, patience: float) -> dict[int, float]:
        """By rank: seconds from `since`, of time.time(), until its ledger has no such lease;
        `patience` where that did not happen."""
        back: dict[int, float] = {}
        while len(back) < len(self.first) and time.time() - since < patience:
            there = self._held()
            now = time.time() - since
            for rank in self.first:
                if rank not in there:
                    back.setdefault(rank, now)
            time.sleep(_LOOK)
        return {rank: back.get(rank, patience) for rank in self.first}

    def _held(self) -> dict[int, int]:
        devices, _ = inventory.devices(self._rows)
        return {
            lease.rank: lease.held
            for device in devices
            for lease in device.leases
            if lease.group != _GROUP
        }
