"""How fast an idle engine gives its cached prefixes to a neighbour.

The idle engine is a process with everything that vLLM's scheduler has under it: vLLM's own block
pool over our queue, the pager, and the thread that sleeps on the lease's bell. All of its memory
holds cached prefixes. This process is the neighbour: it says what it wants, and watches the ledger.

  answer   from saying what is wanted until the first byte is back
  release  from then until all of it is back, over the driver's bare calls for the same extents
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import scratch
from benchmarks.pagers import PATIENCE, Slow, bare_calls, driver_of
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples, ratios
from benchmarks.shapes import FOUR_LAYERS, Plan, plan_of
from kvcached import _C

ANSWER = Target(at_most=10.0)
RELEASE = Target(at_most=1.5)
#: Beside the memory in question: the pinned extents of both, and a little.
SPARE_EXTENTS = 4


def _lease(kind: str, plan: Plan, extents: int, directory: Path, name: str) -> _C.Pager:
    driver = driver_of(kind)
    ledger = str(directory / "bench.ledger")
    terms = _C.LeaseTerms(
        "bench", name, device_limit_bytes=(extents + SPARE_EXTENTS) * plan.extent_bytes
    )
    path = str(directory / f"{name}.row")
    pager = _C.Pager(driver, plan.geometry(extents + 1), path, name, ledger=ledger, terms=terms)
    pager.start()
    return pager


class _IdleScheduler:
    """What the thread looks at: an engine without requests."""

    idle = True

    def __init__(self) -> None:
        self.memory_lock = threading.RLock()


def _keep_prefixes(kind: str, extents: int, directory: Path, door: Connection) -> None:
    """The idle engine: fills its memory with cached prefixes whenever told to."""
    from vllm.v1.core.block_pool import BlockPool

    from kvcached_vllm.memory_thread import MemoryThread
    from kvcached_vllm.supply import BlockSupply

    plan = plan_of(FOUR_LAYERS, driver_of(kind))
    pager = _lease(kind, plan, extents, directory, "idle")
    blocks = (extents + 1) * plan.blocks_per_extent
    block_pool = BlockPool(blocks, enable_caching=True, hash_block_size=128)
    pool = _C.Pool([str(directory / "idle.row")], 0, 0)
    supply = BlockSupply(pool, block_pool, {}, 0, None)
    scheduler = _IdleScheduler()
    thread = MemoryThread(scheduler, supply)
    thread.start()
    with suppress(EOFError):
        while door.recv() == "fill":
            with scheduler.memory_lock:
                pool.ensure(extents * plan.blocks_per_extent, PATIENCE)
                taken = supply.queue.popleft_n(extents * plan.blocks_per_extent)
                supply.queue.append_n(taken)
                step = supply.begin_step()
                pager.launched(step)
                supply.finish_step(step)
            door.send(pool.num_cached)
    thread.stop()
    pager.stop()


def _reclaim(ledger: _C.Ledger, pool: _C.Pool, slot: int, blocks: int) -> tuple[float, float]:
    """Seconds until the idle engine's first byte is back, and from then until all are."""
    before = ledger.snapshot()[2][slot]
    floor = before // 16  # its pinned extent, and what is free without it
    began = time.perf_counter()
    pool.ask(blocks)
    first: float | None = None
    told = began
    while True:
        now = time.perf_counter()
        held = ledger.snapshot()[2][slot]
        if first is None and held < before:
            first = now
        if held <= floor and first is not None:
            return first - began, now - first
        if now - began > PATIENCE:
            raise Slow(f"{held} bytes were not given back")
        if now - told > 0.05:
            told = now
            pool.ask(blocks)
        time.sleep(0.0005)


def measure(report: Report, options: argparse.Namespace) -> None:
    """Adds both rows."""
    driver = driver_of(options.driver)
    plan = plan_of(FOUR_LAYERS, driver)
    extents = (options.mebibytes << 20) // plan.extent_bytes
    context = multiprocessing.get_context("spawn")
    answers: list[float] = []
    releases: list[float] = []
    bare: list[float] = []
    with scratch.directory() as directory:
        ours, theirs = context.Pipe()
        idle = context.Process(
            target=_keep_prefixes, args=(options.driver, extents, directory, theirs), daemon=True
        )
        idle.start()
        theirs.close()
        pager: _C.Pager | None = None
        try:
            for _ in range(options.rounds):
                ours.send("fill")
                cached = ours.recv()
                if cached < extents * plan.blocks_per_extent:
                    raise Slow(f"only {cached} blocks could be cached")
                if pager is None:
                    pager = _lease(options.driver, plan, extents, directory, "neighbour")
                    pool = _C.Pool([str(directory / "neighbour.row")], 0, 0)
                    ledger = _C.Ledger.open(str(directory / "bench.ledger"))
                    slots = {
                        lease["instance"]: lease["slot"] for lease in ledger.describe()["leases"]
                    }
                # What it needed within the last second is still its own by right.
                time.sleep(1.5)
                pool.begin_step(len(answers) + 1)
                answer, release = _reclaim(
                    ledger, pool, slots["idle"], extents * plan.blocks_per_extent
                )
                pool.begin_step(len(answers) + 1)
                pool.balance(True)  # wants nothing any more
                time.sleep(1.5)  # and is no longer promised it
                answers.append(answer * 1e3)
                releases.append(release)
                times = bare_calls(options.driver).time_extents(
                    plan.part_bytes, plan.shape.layers, extents
                )
                bare.append(sum(wall for wall, _ in times[1:]) / 1e9)
        finally:
            ours.close()
            idle.join(10)
            if pager is not None:
                pager.stop()
    report.add(Row("first byte back", Samples("ms", answers), ANSWER))
    took, calls_took = Samples("s", releases), Samples("s", bare)
    report.add(
        Row(
            f"{options.mebibytes} MiB back, over bare calls",
            ratios(took, calls_took),
            RELEASE,
            {"reclaim": took, "bare": calls_took},
        )
    )


def main() -> int:
    parser = arguments_of(__doc__ or "")
    parser.add_argument("--driver", choices=("host", "cuda"), default="host")
    parser.add_argument("--mebibytes", type=int, default=4096, help="of cached prefixes")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.quick:
        options.mebibytes, options.rounds = 512, 2
    report = Report("reclaim", options)
    measure(report, options)
    return report.finish("An idle engine's cached prefixes, given to a neighbour")


if __name__ == "__main__":
    sys.exit(main())
