"""One made-up engine: a worker and a scheduler in one process, whose load comes in waves.

python -m kvcached.cli.kvtop.made_up_engine DIRECTORY GROUP INSTANCE MOST_MIB
"""

from __future__ import annotations

import math
import random
import select
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kvcached import _C, shm
from kvcached.cli.kvtop.demo import CAPACITY_BYTES

_MIB = 1 << 20
_BLOCK = 64 << 10
_BLOCKS_PER_EXTENT = 4
_TICK_SECONDS = 0.05
# Of the blocks that finished requests leave, this share holds a prefix; and so many are kept.
_PREFIXES = 0.4
_MOST_CACHED = 0.15
# Blocks of the oldest request.
_OLDEST = 32


@dataclass(frozen=True)
class _Block:
    block_id: int


class MadeUpEngine:
    """A cache over this machine's memory, and requests that need more and less of it."""

    def __init__(self, directory: Path, group: str, instance: str, most: int) -> None:
        self._most = most // _BLOCK
        self._noise = random.Random(instance)
        self._phase = self._noise.random() * 2 * math.pi
        self._period = self._noise.uniform(25, 50)
        self._step = 0
        self._used: list[_Block] = []
        row = str(shm.row_path(directory, instance, 0))
        self._pager = self._worker(directory, group, instance, row)
        self._pool = _C.Pool([row], 1, 10)
        blocks = [_Block(number) for number in range(self._most)]
        self._queue = _C.BlockQueue(self._pool, blocks)
        self._queue.popleft()  # engines keep their first block as the null block

    def _worker(self, directory: Path, group: str, instance: str, row: str) -> _C.Pager:
        driver = _C.host_driver()
        driver.probe()
        size = self._most * _BLOCK
        geometry = _C.Geometry(self._most, [size], [(0, 0, _BLOCK, _BLOCK)], _BLOCKS_PER_EXTENT)
        terms = _C.LeaseTerms(
            group,
            instance,
            engine="made-up",
            row=row,
            device_limit_bytes=CAPACITY_BYTES,
            virtual_bytes=size,
            extent_bytes=_BLOCK * _BLOCKS_PER_EXTENT,
            longest_bytes=16 * _MIB,
        )
        ledger = str(shm.ledger_path(directory, driver.device_id))
        pager = _C.Pager(driver, geometry, row, "made-up", "layer", ledger=ledger, terms=terms)
        pager.start()
        return pager

    def _need(self) -> int:
        """Blocks that requests need at this moment."""
        wave = 0.5 + 0.5 * math.sin(2 * math.pi * time.monotonic() / self._period + self._phase)
        return int(self._most * (0.05 + 0.85 * wave * wave + self._noise.uniform(0, 0.05)))

    def tick(self) -> None:
        """One step: requests come or end, then memory is given back that nobody needs."""
        self._step += 1
        self._pool.keep(min(_OLDEST, len(self._used)))
        self._pool.begin_step(self._step)
        self._pager.launched(self._step)
        need = self._need()
        if hard := self._pool.pressure[1]:
            # What neighbours are entitled to, an engine gives as its requests end.
            need = min(need, len(self._used) - hard * _BLOCKS_PER_EXTENT)
        if need > len(self._used):
            self._take(need - len(self._used))
        else:
            self._return(len(self._used) - need)
        self._pool.processed(self._step)
        self._forget(self._pool.coldest(int(self._most * _MOST_CACHED)))
        self._pool.balance(False)
        self._forget(self._pool.owed())
        self._pool.balance(False)
        if self._pool.has_orders and not self._pool.in_flight and not any(self._pool.pressure):
            self._pool.orders_done()

    def _take(self, count: int) -> None:
        self._pool.expect(count)
        self._pool.ensure(count, _TICK_SECONDS / 5)
        self._used += self._queue.popleft_n(min(count, self._queue.num_free_blocks))

    def _return(self, count: int) -> None:
        self._pool.expect(0)
        ended = [self._used.pop() for _ in range(max(min(count, len(self._used)), 0))]
        prefixes = int(len(ended) * _PREFIXES)
        self._queue.append_n(ended[:prefixes])
        self._queue.prepend_n(ended[prefixes:])

    def _forget(self, blocks: list[int]) -> None:
        if blocks:
            self._queue.forget(blocks)

    def stop(self) -> None:
        """Gives everything back."""
        self._pager.stop()


def main(arguments: list[str]) -> None:
    """Runs until standard input ends."""
    directory, group, instance, most = arguments
    engine = MadeUpEngine(Path(directory), group, instance, int(most) * _MIB)
    while not select.select([sys.stdin], [], [], _TICK_SECONDS)[0]:
        engine.tick()
    engine.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
