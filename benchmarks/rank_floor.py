"""What the driver itself takes where two processes, each on a device of its own, ask it at once.

The calls of a growth step without pager, page table and scheduler: create, map and set access of
one handle an extent, begun at the same moment in every process. What two cost over one here is the
driver's own, and no pager can take less.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from benchmarks.pagers import PATIENCE, Slow
from benchmarks.rank_pagers import Rank, end
from kvcached import _C

#: From the word until the first growth begins in every process that was told, in seconds.
LEAD = 0.02
#: Between the beginnings of two of them: longer than one takes, its release included.
PERIOD = 0.02


def _calls(rank: Rank) -> _C.DriverCalls:
    if rank.kind == "cuda":
        return _C.DriverCalls.bare_cuda(rank.ordinal)
    return _C.DriverCalls.of(rank.driver())


def _serve(rank: Rank, door: Connection) -> None:
    calls = _calls(rank)
    door.send("ready")
    with suppress(EOFError):  # until the other side is closed
        while True:
            sizes, repeated, first = door.recv()
            spent = []
            for turn in range(repeated):
                # Not a sleep: processes must begin within microseconds of each other. The clock is
                # the machine's, so that all of them read the same.
                while time.perf_counter() < first + turn * PERIOD:
                    pass
                commit, _, _ = calls.time_sizes(sizes)
                spent.append(commit[0] / 1e3)
            door.send(spent)


class Floor:
    """Processes that make bare calls, one a rank."""

    def __init__(self, doors: Sequence[Connection]) -> None:
        self._doors = doors

    def grow(self, ranks: int, sizes: Sequence[int], repeated: int) -> list[float]:
        """Microseconds until the slower of the first `ranks` processes had handles of these sizes,
        for each of `repeated` growths. Raises Slow."""
        first = time.perf_counter() + LEAD
        for door in self._doors[:ranks]:
            door.send((list(sizes), repeated, first))
        spent = []
        for door in self._doors[:ranks]:
            if not door.poll(PATIENCE):
                raise Slow("bare calls were not answered")
            spent.append(door.recv())
        return [max(together) for together in zip(*spent, strict=True)]


@contextmanager
def floor(ranks: Sequence[Rank]) -> Iterator[Floor]:
    """A process for each rank, its driver ready."""
    # fork() would copy a process that may hold a CUDA context.
    context = multiprocessing.get_context("spawn")
    doors: list[Connection] = []
    processes: list[BaseProcess] = []
    try:
        for rank in ranks:
            ours, theirs = context.Pipe()
            doors.append(ours)
            processes.append(context.Process(target=_serve, args=(rank, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
        for door in doors:
            if not door.poll(PATIENCE):
                raise Slow("a process of bare calls did not start")
            door.recv()
        yield Floor(doors)
    finally:
        end(doors, processes)
