"""Pagers of several ranks, a process and a device each, under one scheduler's side."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks import neighbour
from benchmarks.pagers import PATIENCE, Slow, serve
from benchmarks.shapes import Plan, Shape, plan_of
from kvcached import _C


@dataclass(frozen=True)
class Rank:
    """Where one rank's memory is."""

    kind: str
    """The driver: "cuda" or "host"."""
    ordinal: int = 0
    """The CUDA device."""
    budget: int = 0
    """On the host: bytes that its driver has in all; 0: what the machine has."""

    def driver(self) -> _C.Driver:
        """Probed. Raises _C.Error where the device cannot be used."""
        made = _C.cuda_driver(self.ordinal) if self.kind == "cuda" else _C.host_driver(self.budget)
        made.probe()
        return made


@dataclass
class RankedEngine:
    """A scheduler's side over all ranks, without slack."""

    pool: _C.Pool
    rows: Sequence[_C.Row]
    plan: Plan

    @property
    def at_rest(self) -> bool:
        """Whether no pager owes an answer, and none keeps a handle for reuse."""
        return not self.pool.in_flight and all(
            facts["held_bytes"] == facts["mapped_bytes"]
            for facts in (row.describe() for row in self.rows)
        )

    def grow(self, extents: int) -> float:
        """Waits for so many extents more; returns the seconds until all ranks had them."""
        blocks = self.pool.num_unhashed + extents * self.plan.blocks_per_extent
        began = time.perf_counter()
        granted = self.pool.ensure(blocks, PATIENCE)
        spent = time.perf_counter() - began
        if not granted:
            raise Slow(f"{extents} extents were not granted")
        return spent

    def release_all(self) -> None:
        """Gives back all that is not pinned, and waits until the drivers have destroyed it."""
        deadline = time.monotonic() + PATIENCE
        self.pool.balance(True)
        while not self.at_rest:
            if time.monotonic() > deadline:
                raise Slow("extents were not released")
            self.pool.wait(0.01)
            time.sleep(0.002)
            self.pool.balance(True)

    def commit_seconds(self) -> list[float]:
        """What each rank's pager has spent on commits so far."""
        return [row.describe()["commit_ns"] / 1e9 for row in self.rows]


def _serve(rank: Rank, number: int, shape: Shape, extents: int, row: str, door: Connection) -> None:
    driver = rank.driver()
    geometry = plan_of(shape, driver).geometry(extents + 1)
    serve(_C.Pager(driver, geometry, row, rank=number), door)


@contextmanager
def engine(
    ranks: Sequence[Rank], shape: Shape, extents: int, directory: Path, name: str
) -> Iterator[RankedEngine]:
    """An engine over fresh pagers, each in a process of its own, as vLLM's workers are."""
    plan = plan_of(shape, ranks[0].driver())
    rows = [str(directory / f"{name}.{number}.row") for number in range(len(ranks))]
    # fork() would copy a process that may hold a CUDA context.
    context = multiprocessing.get_context("spawn")
    doors: list[Connection] = []
    processes: list[BaseProcess] = []
    try:
        for number, (rank, row) in enumerate(zip(ranks, rows, strict=True)):
            ours, theirs = context.Pipe()
            doors.append(ours)
            processes.append(
                context.Process(
                    target=_serve, args=(rank, number, shape, extents, row, theirs), daemon=True
                )
            )
            processes[-1].start()
            theirs.close()
        for door in doors:
            if not door.poll(PATIENCE):
                raise Slow("a pager did not start")
            door.recv()
        yield RankedEngine(_C.Pool(rows, 0, 0), [_C.Row.attach(row) for row in rows], plan)
    finally:
        end(doors, processes)


def _hoard(ordinal: int, leave: int, door: Connection) -> None:
    memory = neighbour.Cuda(ordinal)
    size = 1 << 30
    while size >= 2 << 20:
        try:
            if memory.free() - size < leave:
                raise neighbour.Refused("enough")
            memory.take(size)
        except neighbour.Refused:
            size //= 2
    door.send("full")
    with suppress(EOFError):
        door.recv()


@contextmanager
def full(ordinal: int, leave: int) -> Iterator[None]:
    """A CUDA device on which somebody without an account has taken all but `leave` bytes."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hoard, args=(ordinal, leave, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE):
            raise Slow("the device was not filled")
        ours.recv()
        yield
    finally:
        end([ours], [process])


def end(doors: Sequence[Connection], processes: Sequence[BaseProcess]) -> None:
    """Closes the doors of processes that serve until then, and waits for them."""
    for door in doors:
        door.close()
    for process in processes:
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
