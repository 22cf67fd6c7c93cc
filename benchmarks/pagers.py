"""A pager to measure, in a thread of this process or in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.shapes import Plan, Shape, plan_of
from kvcached import _C

#: Longest wait for memory or for its return, in seconds.
PATIENCE = 60.0


class Slow(RuntimeError):
    """The pager did not do in PATIENCE what it was asked to."""


def driver_of(kind: str) -> _C.Driver:
    """A probed driver: "host" or "cuda"."""
    driver = _C.cuda_driver() if kind == "cuda" else _C.host_driver()
    driver.probe()
    return driver


def _threads() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/task").iterdir()}


@dataclass
class Engine:
    """A scheduler's side of the page table, and the row that the pager keeps."""

    pool: _C.Pool
    row: _C.Row
    plan: Plan
    extents: int
    """Extents beside the pinned one."""
    pager_thread: int | None
    """The pager's thread id, where it is in this process."""

    def counters(self) -> dict[str, Any]:
        return dict(self.row.describe())

    def grow(self, extents: int) -> None:
        """Waits for so many extents more."""
        blocks = self.pool.num_unhashed + extents * self.plan.blocks_per_extent
        if not self.pool.ensure(blocks, PATIENCE):
            raise Slow(f"{extents} extents were not granted")

    def release_all(self) -> None:
        """Gives back everything that is not pinned, and waits until it is unmapped."""
        deadline = time.monotonic() + PATIENCE
        self.pool.balance(True)
        while self.pool.releasing_extents:
            if time.monotonic() > deadline:
                raise Slow("extents were not released")
            self.pool.wait(0.01)
            self.pool.balance(True)

    def settle(self) -> None:
        """Waits until no handle is kept for reuse: the next commit is a fresh one."""
        deadline = time.monotonic() + PATIENCE
        while (facts := self.counters())["held_bytes"] != facts["mapped_bytes"]:
            if time.monotonic() > deadline:
                raise Slow("kept handles were not destroyed")
            time.sleep(0.01)

    def pager_cpu_ns(self) -> int:
        """Processor time of the pager's thread so far."""
        assert self.pager_thread is not None
        # The kernel's id of the clock of a thread's processor time; see clock_getcpuclockid(3)
        # and MAKE_THREAD_CPUCLOCK in the kernel's posix-timers.h.
        return time.clock_gettime_ns((~self.pager_thread << 3) | 6)


def _start(kind: str, shape: Shape, extents: int, path: str) -> _C.Pager:
    driver = driver_of(kind)
    geometry = plan_of(shape, driver).geometry(extents + 1)
    pager = _C.Pager(driver, geometry, path)
    pager.start()
    return pager


def _serve(kind: str, shape: Shape, extents: int, path: str, door: Connection) -> None:
    pager = _start(kind, shape, extents, path)
    door.send("ready")
    with suppress(EOFError):
        door.recv()  # until the other side is closed
    pager.stop()


@contextmanager
def engine(
    kind: str, shape: Shape, extents: int, directory: Path, apart: bool = False
) -> Iterator[Engine]:
    """An engine without slack over a fresh pager; `apart` puts the pager in another process, as
    vLLM's worker is."""
    path = str(directory / "engine.row")
    plan = plan_of(shape, driver_of(kind))
    pager: _C.Pager | None = None
    thread: int | None = None
    # fork() would copy a process that may hold a CUDA context.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_serve, args=(kind, shape, extents, path, theirs), daemon=True)
    try:
        if apart:
            worker.start()
            theirs.close()
            ours.recv()
        else:
            before = _threads()
            pager = _start(kind, shape, extents, path)
            (thread,) = _threads() - before
        yield Engine(_C.Pool([path], 0, 0), _C.Row.attach(path), plan, extents, thread)
    finally:
        ours.close()
        if apart:
            worker.join(10)
        if pager is not None:
            pager.stop()
