"""When the leases of an engine are back: looked at in the ledgers, beside neighbours who look after
them as other engines' pagers do."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from benchmarks.pagers import PATIENCE, Slow, serve
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
    serve(pager, door)


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


@dataclass(frozen=True)
class End:
    """Of one rank; seconds."""

    lease: float
    """Until its ledger had no such lease."""
    process: float
    """Until its process had ended."""
    beside: float
    """Until the process of the same rank of the engine beside it had ended."""


class LeaseEnd:
    """The leases of the one engine beside the neighbours."""

    def __init__(self, rows: Path, beside: dict[int, int]) -> None:
        """`beside`: process ids by rank of the engine that it is compared with."""
        self._rows = rows
        self._beside = beside
        self.first = self._leases()
        """Process ids by rank when the look began."""

    def wait(self, since: float, patience: float) -> dict[int, End]:
        """By rank, from `since`, of time.time(); `patience` for what did not come."""
        leases: dict[int, float] = {}
        processes: dict[int, float] = {}
        others: dict[int, float] = {}
        while time.time() - since < patience and not (
            leases.keys() == processes.keys() == self.first.keys()
            and others.keys() == self._beside.keys()
        ):
            there = self._leases()
            now = time.time() - since
            for rank, pid in self.first.items():
                if rank not in there:
                    leases.setdefault(rank, now)
                if not _lives(pid):
                    processes.setdefault(rank, now)
            for rank, pid in self._beside.items():
                if not _lives(pid):
                    others.setdefault(rank, now)
            time.sleep(_LOOK)
        return {
            rank: End(*(found.get(rank, patience) for found in (leases, processes, others)))
            for rank in self.first
        }

    def _leases(self) -> dict[int, int]:
        devices, _ = inventory.devices(self._rows)
        return {
            lease.rank: lease.pid
            for device in devices
            for lease in device.leases
            if lease.group != _GROUP
        }


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
