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


#: What a driver on paper has, in bytes: more than any simulation takes.
_ON_PAPER = 1 << 40


def driver_of(kind: str) -> _C.Driver:
    """A probed driver: "host", "cuda", or "sim", whose memory exists on paper."""
    if kind == "sim":
        driver = _C.sim_driver(_ON_PAPER)
    else:
        driver = _C.cuda_driver() if kind == "cuda" else _C.host_driver()
    driver.probe()
    return driver


def bare_calls(kind: str) -> _C.DriverCalls:
    """The system's own calls: CUDA's functions alone, or the host driver, which is little more
    than the kernel's."""
    return _C.DriverCalls.bare_cuda() if kind == "cuda" else _C.DriverCalls.of(driver_of(kind))


def _pager_threads() -> set[int]:
    """The pagers' threads of this process, by the name they give themselves; CUDA has threads of
    its own."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it may have ended
            if (task / "comm").read_text().strip() == "kvcached-pager":
                found.add(int(task.name))
    return found


@dataclass
class Engine:
    """A scheduler's side of the page table, and the row that the pager keeps."""

    pool: _C.Pool
    pager: _C.Pager | None
    """The pager, where it is in this process."""
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


def serve(pager: _C.Pager, door: Connection) -> None:
    """A pager's life in a process of its own: until the other side of the door is closed."""
    pager.start()
    door.send("ready")
    with suppress(EOFError):
        door.recv()
    pager.stop()


def _pager(kind: str, shape: Shape, extents: int, path: str, max_handle_bytes: int = 0) -> _C.Pager:
    driver = driver_of(kind)
    geometry = plan_of(shape, driver).geometry(extents + 1)
    return _C.Pager(driver, geometry, path, max_handle_bytes=max_handle_bytes)


def _serve(kind: str, shape: Shape, extents: int, path: str, door: Connection) -> None:
    serve(_pager(kind, shape, extents, path), door)


@contextmanager
def engine(
    kind: str,
    shape: Shape,
    extents: int,
    directory: Path,
    apart: bool = False,
    max_handle_bytes: int = 0,
) -> Iterator[Engine]:
    """An engine without slack over a fresh pager; `apart` puts the pager in another process, as
    vLLM's worker is. `max_handle_bytes` bounds the handles of a pager in this one; 0: what the
    driver finds useful."""
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
            before = _pager_threads()
            pager = _pager(kind, shape, extents, path, max_handle_bytes)
            pager.start()
            deadline = time.monotonic() + PATIENCE
            while not (new := _pager_threads() - before):
                if time.monotonic() > deadline:
                    raise Slow("the pager's thread does not run")
            (thread,) = new
        yield Engine(_C.Pool([path], 0, 0), pager, _C.Row.attach(path), plan, extents, thread)
    finally:
        ours.close()
        if apart:
            worker.join(10)
        if pager is not None:
            pager.stop()
