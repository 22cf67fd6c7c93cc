"""Committing and releasing memory: what the pager adds to the driver, and how long growth takes.

  calls    the pager over the same driver calls made in a native loop
  growth   from the scheduler's wish for one extent more to its use, with the pager asleep in
           another thread or in another process, as vLLM's worker is; memory always fresh
  bulk     GB/s of growing to `--bulk-mib` and of giving it back

`commit`, `release` and `cycle` of the calls are processor time of the pager's whole thread, its
waking, bookkeeping and answering included: what others do on the machine does not count. A
release leaves handles for the next commit and destroys them a moment later, so `release` is
compared with unmap alone, and `cycle` has the rest. What ends in `inside` is wall-clock time
inside the pager, from its row's counters: on a machine that does nothing else, the calls alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import pagers, scratch
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples, ratios
from benchmarks.shapes import SHAPES, Shape, plan_of
from kvcached import _C

CALLS_TARGET = Target(at_most=1.1)
#: What is compared with the bare calls. Handles that were kept cost less than fresh ones, so a
#: commit with them is no comparison of equals.
CALLS = {
    "commit": CALLS_TARGET,
    "release": CALLS_TARGET,
    "cycle": CALLS_TARGET,
    "commit, inside": CALLS_TARGET,
    "release, inside": CALLS_TARGET,
    "commit again, inside": None,
}
GROWTH_TARGET = Target(at_most=200.0)

#: What a pager keeps of released handles. Up to it a release destroys nothing.
KEPT_BYTES = 64 << 20
#: Extents that grow one at a time between two releases, and the most memory for them.
GROWTH_EXTENTS = 128
GROWTH_BYTES = 384 << 20
#: Between two growths, so that the pager sleeps again, as it does between an engine's steps.
GROWTH_PAUSE = 0.001
#: Until a pager that has answered sleeps, in seconds.
ASLEEP = 0.003


def measure_calls(report: Report, kind: str, shape: Shape, rounds: int, directory: Path) -> None:
    """Adds the rows of the pager against the bare driver."""
    plan = plan_of(shape, pagers.driver_of(kind))
    calls = pagers.bare_calls(kind)
    extents = max(1, KEPT_BYTES // plan.extent_bytes - 1)
    # By name: the pager's and the bare calls' microseconds an extent.
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in CALLS}

    def note(side: int, name: str, nanoseconds: int) -> None:
        times[name][side].append(nanoseconds / extents / 1000)

    def bare() -> None:
        commit, release, destroy = calls.time_extents(plan.part_bytes, shape.layers, extents)
        note(1, "commit", commit[1])
        note(1, "release", release[1])
        note(1, "cycle", commit[1] + release[1] + destroy[1])
        note(1, "commit, inside", commit[0])
        note(1, "release, inside", release[0])
        note(1, "commit again, inside", commit[0])

    with pagers.engine(kind, shape, extents, directory) as engine:

        def counted(name: str) -> int:
            return int(engine.counters()[name])

        def paged() -> None:
            inside, began = counted("commit_ns"), engine.pager_cpu_ns()
            engine.grow(extents)
            time.sleep(ASLEEP)
            grown = engine.pager_cpu_ns()
            note(0, "commit", grown - began)
            note(0, "commit, inside", counted("commit_ns") - inside)
            inside = counted("release_ns")
            engine.release_all()
            time.sleep(ASLEEP)
            note(0, "release", engine.pager_cpu_ns() - grown)
            note(0, "release, inside", counted("release_ns") - inside)
            engine.settle()
            time.sleep(ASLEEP)
            note(0, "cycle", engine.pager_cpu_ns() - began)

        def paged_again() -> None:
            engine.grow(extents)
            engine.release_all()
            inside = counted("commit_ns")
            engine.grow(extents)
            note(0, "commit again, inside", counted("commit_ns") - inside)
            engine.release_all()
            engine.settle()

        for turn in range(rounds + 1):
            for step in (paged, bare) if turn % 2 == 0 else (bare, paged):
                step()
            paged_again()
    for name, (ours, theirs) in times.items():
        # The first round meets everything cold.
        paged_times, bare_times = Samples("us", ours[1:]), Samples("us", theirs[1:])
        report.add(
            Row(
                f"calls, {shape.name}, {name}",
                ratios(paged_times, bare_times),
                CALLS[name],
                {"pager": paged_times, "bare": bare_times},
                {
                    "extent_bytes": plan.extent_bytes,
                    "handles_an_extent": shape.layers,
                    "extents": extents,
                },
            )
        )


def measure_growth(
    report: Report, kind: str, shape: Shape, rounds: int, directory: Path, apart: bool
) -> None:
    """Adds the row of how long a scheduler waits for one extent."""
    plan = plan_of(shape, pagers.driver_of(kind))
    calls = pagers.bare_calls(kind)
    extents = min(GROWTH_EXTENTS, max(1, GROWTH_BYTES // plan.extent_bytes))
    waits: list[float] = []
    inside: list[float] = []
    bare: list[float] = []
    with pagers.engine(kind, shape, extents, directory, apart) as engine:
        for turn in range(rounds + 1):
            before = engine.counters()
            measured: list[float] = []
            for _ in range(extents):
                blocks = engine.pool.num_unhashed + plan.blocks_per_extent
                began = time.perf_counter_ns()
                granted = engine.pool.ensure(blocks, pagers.PATIENCE)
                ended = time.perf_counter_ns()
                if not granted:
                    raise pagers.Slow("an extent was not granted")
                measured.append((ended - began) / 1000)
                time.sleep(GROWTH_PAUSE)
            spent = engine.counters()["commit_ns"] - before["commit_ns"]
            engine.release_all()
            engine.settle()
            if turn > 0:
                waits += measured
                inside.append(spent / extents / 1000)
                commit, _, _ = calls.time_extents(plan.part_bytes, shape.layers, extents)
                bare.append(commit[0] / extents / 1000)
    where = "process" if apart else "thread"
    report.add(
        Row(
            f"growth, {shape.name}, other {where}",
            Samples("us", waits),
            GROWTH_TARGET,
            {"pager": Samples("us", inside), "bare": Samples("us", bare)},
            {"extent_bytes": plan.extent_bytes, "handles_an_extent": shape.layers},
        )
    )


@dataclass
class _Block:
    block_id: int


def measure_bulk(
    report: Report, kind: str, shape: Shape, rounds: int, directory: Path, mebibytes: int
) -> None:
    """Adds the rows of bulk growth and release."""
    plan = plan_of(shape, pagers.driver_of(kind))
    extents = max(32, (mebibytes << 20) // plan.extent_bytes)
    gigabytes = extents * plan.extent_bytes / 1e9
    rates: dict[str, list[float]] = {
        name: [] for name in ("grow", "release", "grow in use", "release after use")
    }
    with pagers.engine(kind, shape, extents, directory) as engine:
        queue = _C.BlockQueue(
            engine.pool, [_Block(index) for index in range(engine.pool.num_blocks)]
        )

        def timed(name: str, began: float) -> None:
            rates[name].append(gigabytes / (time.perf_counter() - began))

        for _ in range(rounds):
            began = time.perf_counter()
            engine.grow(extents)
            timed("grow", began)
            began = time.perf_counter()
            engine.release_all()
            timed("release", began)
            engine.settle()
            # The more is in use, the larger the handles that the pool asks for.
            held: list[_Block] = queue.popleft_n(plan.blocks_per_extent)
            began = time.perf_counter()
            left = extents
            while left > 0:
                step = min(left, max(1, extents // 16))
                engine.grow(step)
                held += queue.popleft_n(step * plan.blocks_per_extent)
                left -= step
            timed("grow in use", began)
            queue.prepend_n(held)
            began = time.perf_counter()
            engine.release_all()
            timed("release after use", began)
            engine.settle()
    for name, values in rates.items():
        report.add(
            Row(
                f"bulk, {shape.name}, {name}",
                Samples("GB/s", values),
                facts={"extent_bytes": plan.extent_bytes, "extents": extents},
            )
        )


def measure(report: Report, options: argparse.Namespace) -> None:
    """Adds every row."""
    rounds = 3 if options.quick else options.rounds
    bulk = 256 if options.quick else options.bulk_mib
    with scratch.directory() as where:
        for shape in SHAPES:
            measure_calls(report, options.driver, shape, rounds, where)
        for shape in SHAPES:
            for apart in (False, True):
                measure_growth(report, options.driver, shape, rounds, where, apart)
        for shape in SHAPES:
            measure_bulk(report, options.driver, shape, max(3, rounds // 3), where, bulk)


def main() -> int:
    parser = arguments_of(__doc__ or "")
    parser.add_argument("--driver", choices=("host", "cuda"), default="host")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--bulk-mib", type=int, default=1024)
    options = parser.parse_args()
    report = Report("pager", options)
    measure(report, options)
    return report.finish(f"The pager on the {options.driver} driver; times an extent")


if __name__ == "__main__":
    sys.exit(main())
