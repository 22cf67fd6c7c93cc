"""Memory that goes from an idle engine to one that waits for it, through the ledger.

Two engines, each with its pager and its scheduler's side in a process of its own, take turns: one
keeps everything there is as cached prefixes and is idle, the other wants all of it. Giving back and
taking overlap: what one has destroyed the other may create while the first goes on.
"""

from __future__ import annotations

import multiprocessing
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from benchmarks import scratch
from benchmarks.pagers import PATIENCE, Slow, bare_calls, driver_of
from benchmarks.report import Report, Row, Target
from benchmarks.samples import Samples
from benchmarks.shapes import Shape, plan_of
from kvcached import _C

MIB = 1 << 20
MOVED = Target(at_most=100.0, percentile=99)
#: Beside the memory in question: the pinned extents of both.
SPARE_EXTENTS = 2
#: What an engine needed within the last second is still its own by right.
UNWANTED = 1.3
#: Between looks of an idle engine at its parent's word, in seconds, and between looks while its
#: pager owes answers; see kvcached_vllm.memory_thread.
ASLEEP = 0.02
IN_FLIGHT = 0.002
#: How long a wish waits before it is told again, in seconds, as in a scheduler's next step. The
#: ledger believes for a moment only what an engine said it wants.
WAIT = 0.02
#: Rounds of the bare calls.
BARE_ROUNDS = 5


@dataclass(frozen=True)
class _Setting:
    """What both engines are made of."""

    kind: str
    shape: Shape
    extents: int
    max_handle: int
    directory: str


@dataclass
class _Block:
    block_id: int


class _Engine:
    """One engine: a scheduler's side that takes and keeps blocks, and its pager."""

    def __init__(self, setting: _Setting, name: str) -> None:
        driver = driver_of(setting.kind)
        plan = plan_of(setting.shape, driver)
        limit = (setting.extents + SPARE_EXTENTS) * plan.extent_bytes
        row = f"{setting.directory}/{name}.row"
        self.pager = _C.Pager(
            driver,
            plan.geometry(setting.extents + 1),
            row,
            name,
            ledger=f"{setting.directory}/moves.ledger",
            terms=_C.LeaseTerms("bench", name, device_limit_bytes=limit),
            max_handle_bytes=setting.max_handle,
        )
        self.pager.start()
        self._pool = _C.Pool([row], 0, 0)
        blocks = [_Block(index) for index in range(self._pool.num_blocks)]
        self._queue = _C.BlockQueue(self._pool, blocks)
        self._need = self._pool.num_blocks
        self._extent_bytes = plan.extent_bytes
        self._taken: list[_Block] = []
        self._step = 0

    def want(self) -> tuple[float, list[int]]:
        """Waits for everything; returns the seconds that took, and the sizes of the handles."""
        # What the other did not ask for.
        self._queue.forget(self._pool.coldest(0))
        began = time.perf_counter()
        self._begin_step()
        while not self._pool.ensure(self._need, WAIT):
            if time.perf_counter() - began > PATIENCE:
                raise Slow(f"{self._pool.num_unhashed} of {self._need} blocks came")
            self._pool.wait_for_memory(IN_FLIGHT)
            self._begin_step()
        spent = time.perf_counter() - began
        self._taken = self._queue.popleft_n(self._need)
        return spent, [count * self._extent_bytes for _, count in self._pool.units()]

    def keep_as_prefixes(self) -> None:
        """All requests end, and all that they held stays cached."""
        self._queue.append_n(self._taken)
        self._taken = []
        self._begin_step()

    def look(self) -> float:
        """What an idle engine does when it is rung for; returns the seconds until the next look."""
        self._pool.balance(True)
        if owed := self._pool.owed():
            self._queue.forget(owed)
            self._pool.balance(True)
        return IN_FLIGHT if self._pool.in_flight else ASLEEP

    def sleep(self, seconds: float) -> None:
        """Until somebody rings, at most so long."""
        self._pool.wait_for_bell(seconds)

    def _begin_step(self) -> None:
        self._step += 1
        self._pool.begin_step(self._step)
        self.pager.launched(self._step)
        self._pool.processed(self._step)


def _serve(setting: _Setting, name: str, door: Connection) -> None:
    engine = _Engine(setting, name)
    door.send("ready")
    timeout = ASLEEP
    with suppress(EOFError):
        while True:
            if not door.poll():
                engine.sleep(timeout)
                timeout = engine.look()
            elif door.recv() == "want":
                door.send(engine.want())
            else:
                engine.keep_as_prefixes()
                timeout = engine.look()
                door.send("idle")
    engine.pager.stop()


class _Process:
    """An engine in a process of its own."""

    def __init__(self, setting: _Setting, name: str) -> None:
        # fork() would copy a process that may hold a CUDA context.
        context = multiprocessing.get_context("spawn")
        self._door, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(setting, name, theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        self._answer()

    def want(self) -> tuple[float, list[int]]:
        self._door.send("want")
        spent, sizes = self._answer()
        return spent, sizes

    def become_idle(self) -> None:
        self._door.send("idle")
        self._answer()

    def stop(self) -> None:
        self._door.close()
        self._process.join(10)

    def _answer(self) -> tuple[float, list[int]]:
        if not self._door.poll(2 * PATIENCE):
            raise Slow("an engine does not answer")
        answer: tuple[float, list[int]] = self._door.recv()
        return answer


def measure(
    report: Report, kind: str, gib: float, rounds: int, name: str, shape: Shape, max_handle: int
) -> None:
    """Adds the rows of `rounds` moves of so much memory, in handles of at most `max_handle` bytes
    (0: what the driver finds useful)."""
    extents = max(1, int(gib * 1024) * MIB // plan_of(shape, driver_of(kind)).extent_bytes)
    spent: list[float] = []
    handles: list[float] = []
    processes: list[_Process] = []
    with scratch.directory() as directory:
        setting = _Setting(kind, shape, extents, max_handle, str(directory))
        try:
            processes.extend(_Process(setting, engine) for engine in ("one", "other"))
            holder, waiter = processes
            holder.want()
            # The first move meets everything cold.
            for turn in range(rounds + 1):
                holder.become_idle()
                time.sleep(UNWANTED)
                seconds, sizes = waiter.want()
                if turn > 0:
                    spent.append(seconds)
                    handles.append(len(sizes))
                holder, waiter = waiter, holder
        finally:
            for process in processes:
                process.stop()
    _compare(report, kind, f"move, {name}", spent, sizes, Samples("", handles))


def _compare(
    report: Report, kind: str, name: str, spent: list[float], sizes: list[int], handles: Samples
) -> None:
    calls = bare_calls(kind)
    times = [calls.time_sizes(sizes) for _ in range(BARE_ROUNDS)]
    commits = Samples("ms", [commit[0] / 1e6 for commit, _, _ in times])
    releases = Samples("ms", [(unmap[0] + destroy[0]) / 1e6 for _, unmap, destroy in times])
    facts: dict[str, object] = {"bytes": sum(sizes), "handles": handles.median}
    parts = {"bare": Samples("ms", [commits.median + releases.median])}
    milliseconds = Samples("ms", [1e3 * seconds for seconds in spent])
    report.add(Row(f"{name} ({len(sizes):,} handles)", milliseconds, MOVED, parts, facts))
    one_after_another = commits.median + releases.median
    report.add(
        Row(
            f"{name}, over bare release and growth",
            Samples("ratio", [value / one_after_another for value in milliseconds.values]),
            facts={**facts, "bare_growth_ms": commits.median, "bare_release_ms": releases.median},
        )
    )
