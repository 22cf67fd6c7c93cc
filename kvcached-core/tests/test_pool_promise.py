"""Free blocks that are promised stay, though a neighbour is entitled to their memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from miniature import eventually

from kvcached import _C

GRANULE = 65536
PER_EXTENT = 4
BLOCK = GRANULE // PER_EXTENT
EXTENTS = 8


class Engine:
    """One rank on a simulated device of eight extents, its pager turned by hand."""

    def __init__(self, where: Path) -> None:
        blocks = EXTENTS * PER_EXTENT
        geometry = _C.Geometry(blocks, [blocks * BLOCK], [(0, 0, BLOCK, BLOCK)], PER_EXTENT)
        driver = _C.sim_driver(EXTENTS * GRANULE, GRANULE)
        driver.probe()
        row, self.ledger = str(where / "it.row"), str(where / "sim.ledger")
        terms = _C.LeaseTerms("engine", "it", floor_bytes=GRANULE)
        self.pager = _C.Pager(driver, geometry, row, ledger=self.ledger, terms=terms)
        self.pager.start_by_hand()
        self.pool = _C.Pool([row], 0, 0)

    def grow(self, blocks: int) -> None:
        while not self.pool.ensure(blocks, 0.0):
            self.pager.turn()

    def take(self, blocks: int) -> array[int]:
        ids = array("q", bytes(8 * blocks))
        self.pool.take_into(ids)
        return ids

    def answer(self, free: int, withheld: int) -> bool:
        """Answers the ledger, as steps do, until so many blocks are there."""

        def answered() -> bool:
            self.pool.balance(False)
            self.pager.turn()
            return (self.pool.num_free, self.pool.num_withheld) == (free, withheld)

        return eventually(answered)

    def press(self, extents: int) -> None:
        """A neighbour asks for what it is entitled to, and does not get all of it yet."""
        terms = _C.LeaseTerms("neighbour", "it", floor_bytes=extents * GRANULE)
        capacity = EXTENTS * GRANULE
        self.neighbour = _C.Lease.join(self.ledger, "sim", "sim", GRANULE, 0, capacity, terms)
        assert self.neighbour.resize(extents * GRANULE) != "granted"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = Engine(tmp_path)
    yield made
    made.pager.stop()


def test_empty_extents_go_to_who_waits_except_those_that_are_promised(engine: Engine) -> None:
    engine.grow(EXTENTS * PER_EXTENT)
    engine.pool.promise(9)
    engine.press(6)
    assert engine.answer(free=3 * PER_EXTENT, withheld=0)
    engine.pool.promise(0)
    assert engine.answer(free=2 * PER_EXTENT, withheld=0)


def test_extents_are_emptied_only_beyond_what_is_promised(engine: Engine) -> None:
    engine.grow(EXTENTS * PER_EXTENT)
    ids = engine.take(EXTENTS * PER_EXTENT)
    engine.pool.give(ids[PER_EXTENT::PER_EXTENT])  # one block of each extent but the first
    engine.pool.promise(5)
    engine.press(6)
    assert engine.answer(free=5, withheld=EXTENTS - 1 - 5)


def test_what_came_back_to_extents_that_are_being_emptied_stays_for_whom_it_is_promised(
    engine: Engine,
) -> None:
    engine.grow(EXTENTS * PER_EXTENT)
    ids = engine.take(EXTENTS * PER_EXTENT)
    engine.press(6)
    assert eventually(lambda: engine.answer(0, 0) and engine.pool.pressure == (0, 6))
    engine.pool.balance(False)
    engine.pool.give(ids[2 * PER_EXTENT :])
    assert engine.pool.num_withheld == 6 * PER_EXTENT
    engine.pool.promise(10)
    assert engine.answer(free=3 * PER_EXTENT, withheld=0)
