"""One rank's device on paper, in a world where nothing happens by itself.

The pager is turned by hand, launched batches end when the world says so, and a neighbour on the
device takes memory and leaves. Waiting for memory is letting the world go on.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kvcached import _C
from kvcached_sglang import page_supply
from kvcached_sglang.page_supply import PageSupply

GRANULE = 65536
PAGES = 48
PAGES_PER_EXTENT = 4
PAGE_BYTES = GRANULE // PAGES_PER_EXTENT
EXTENTS = PAGES // PAGES_PER_EXTENT


class PatientPool:
    """A pool whose waits, whatever their seconds, are a few turns of the world."""

    def __init__(
        self, pool: _C.Pool, turns: Callable[[float], int], wait: Callable[[], None]
    ) -> None:
        self._pool = pool
        self._turns = turns
        self._wait = wait

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def close(self) -> None:
        del self._pool

    def ensure(self, blocks: int, seconds: float) -> bool:
        if seconds == page_supply.LOOK:
            # A batch that was formed takes its pages: it must find them.
            assert self._pool.ensure(blocks, 0.0), f"{blocks} pages were granted and are not there"
        for _ in range(self._turns(seconds)):
            if self._pool.ensure(blocks, 0.0):
                return True
            self._wait()
        return self._pool.ensure(blocks, 0.0)


class Device:
    """Memory, pager, ledger and pages of one rank."""

    def __init__(
        self, where: Path, rank: int, dice: random.Random, wait: Callable[[], None]
    ) -> None:
        self._dice = dice
        self._ledger = str(where / f"{rank}.ledger")
        self._capacity = dice.randrange(EXTENTS // 2, EXTENTS + 1) * GRANULE
        geometry = _C.Geometry(
            PAGES, [PAGES * PAGE_BYTES], [(0, 0, PAGE_BYTES, PAGE_BYTES)], PAGES_PER_EXTENT
        )
        driver = _C.sim_driver(self._capacity, GRANULE)
        driver.probe()
        row = str(where / f"{rank}.row")
        terms = _C.LeaseTerms("engine", str(rank), rank=rank)
        self._pager = _C.Pager(driver, geometry, row, rank=rank, ledger=self._ledger, terms=terms)
        self._pager.start_by_hand()
        self._row = _C.Row.attach(row)
        self.pool = PatientPool(_C.Pool([row], 1, 10), self._turns, wait)
        pool: Any = self.pool
        self.supply = PageSupply(pool, torch.device("cpu"), page_size=1)
        self._neighbour: _C.Lease | None = None
        self._stays = dice.random() < 0.5
        """Whether the neighbour keeps what it has got to the end."""
        self._running: deque[int] = deque()

    def _turns(self, seconds: float) -> int:
        # A rank that waits for what it was granted comes back anyway.
        return self._dice.randrange(3 if seconds < 0.1 else 6)

    def launch(self, step: int) -> None:
        """The device has a batch to run."""
        self._running.append(step)

    def happen(self) -> None:
        """One thing that may happen on a device at any time."""
        what = self._dice.random()
        if what < 0.55:
            self._pager.turn()
        elif what < 0.75:
            if self._running:
                self._pager.launched(self._running.popleft())
        elif what < 0.9:
            self._press()
        elif not self._stays:
            self._leave()

    def _press(self) -> None:
        if self._neighbour is None:
            floor = self._dice.choice([None, self._capacity // 3])
            terms = _C.LeaseTerms("neighbour", "it", floor_bytes=floor)
            free = self._capacity - self._row.describe()["held_bytes"]
            self._neighbour = _C.Lease.join(
                self._ledger, "sim", "sim", GRANULE, free, self._capacity, terms
            )
        # What it does not get now it asks for, and gets when it asks again.
        self._neighbour.resize(self._dice.randrange(self._capacity))

    def _leave(self) -> None:
        if self._neighbour is not None:
            self._neighbour.leave()
            self._neighbour = None

    def has_memory(self, ids: torch.Tensor) -> bool:
        """Whether all pages may be written to."""
        committed = self._row.committed()
        return all(committed[page // PAGES_PER_EXTENT] for page in ids.tolist())

    def stop(self) -> None:
        """Leaves nothing behind: thousands of schedules hold more files than a process may."""
        self._leave()
        self._pager.stop()
        self.pool.close()
        del self._pager, self._row
