"""One engine's memory on two devices: two pagers in processes of their own, one scheduler's side.

  growth    from the wish for so many extents until they can be used, over two ranks against over
            one, in turns; `pager` is the part inside the slower pager
  floor     the same for the driver's bare calls, one handle an extent, by processes that begin at
            the same moment: what the driver itself takes longer where two devices grow at once
  refusal   one device is full, and nobody has told: what its rank refuses the other gives back,
            and once there is room again both get it

On CUDA the ranks are on devices 0 and 1. On the host both are on this machine's memory, and the
second rank's driver has a budget where its device is to be full.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from benchmarks import rank_floor, rank_pagers, scratch
from benchmarks.pagers import Slow
from benchmarks.rank_pagers import Rank, RankedEngine
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples, ratios
from benchmarks.shapes import BLOCK_MAJOR, plan_of
from kvcached import _C

STEP = Target(at_most=1.2)
NONE = Target(at_most=0)
SOME = Target(at_least=1)
#: Extents of one growth step: what a request takes, and what a burst does.
STEPS = (1, 32)
#: Growth steps of one round.
REPEATED = 24
#: Between two of them, so that the pagers sleep again, as between an engine's steps.
PAUSE = 0.002
#: Extents beyond what fits on the full device, in a refusal.
TOO_MANY = 64
#: Bytes left on a CUDA device that is full.
LEFT = 256 << 20
#: A refused driver is asked again after 100 ms.
RETRY = 0.15
PATIENCE = 2.0


def measure_growth(report: Report, kind: str, rounds: int, directory: Path) -> None:
    """Adds a row for every size of a step."""
    extents = REPEATED * max(STEPS)
    both = [Rank(kind, 0), Rank(kind, 1)]
    with (
        rank_pagers.engine(both[:1], BLOCK_MAJOR, extents, directory, "one") as one,
        rank_pagers.engine(both, BLOCK_MAJOR, extents, directory, "two") as two,
    ):
        for step in STEPS:
            repeated = REPEATED if step > 1 else 4 * REPEATED
            times: dict[str, list[float]] = {"one": [], "two": []}
            inside: dict[str, list[float]] = {"one": [], "two": []}
            for turn in range(rounds + 1):
                sides = (("one", one), ("two", two))
                for name, engine in sides if turn % 2 == 0 else sides[::-1]:
                    waited, spent = _round(engine, step, repeated)
                    if turn > 0:  # the first meets everything cold
                        times[name].append(waited)
                        inside[name].append(spent)
            ours, theirs = (Samples("us", times[name]) for name in ("two", "one"))
            report.add(
                Row(
                    f"growth by {step} extents, two ranks over one",
                    ratios(ours, theirs),
                    STEP,
                    {
                        "two ranks": ours,
                        "one rank": theirs,
                        "pager of two": Samples("us", inside["two"]),
                        "pager of one": Samples("us", inside["one"]),
                    },
                    {"extent_bytes": one.plan.extent_bytes, "steps_a_round": repeated},
                )
            )


def measure_floor(report: Report, kind: str, rounds: int) -> None:
    """Adds a row for every size of a step; what the driver itself takes has no target."""
    both = [Rank(kind, 0), Rank(kind, 1)]
    extent = plan_of(BLOCK_MAJOR, both[0].driver()).extent_bytes
    with rank_floor.floor(both) as bare:
        for step in STEPS:
            times: dict[int, list[float]] = {1: [], 2: []}
            for turn in range(rounds + 1):
                for ranks in (1, 2) if turn % 2 == 0 else (2, 1):
                    spent = bare.grow(ranks, [extent] * step, REPEATED)
                    if turn > 0:  # the first meets everything cold
                        times[ranks].append(Samples("us", spent).median)
            ours, theirs = (Samples("us", times[ranks]) for ranks in (2, 1))
            report.add(
                Row(
                    f"floor: bare calls for {step} extents, two processes over one",
                    ratios(ours, theirs),
                    parts={"two processes": ours, "one process": theirs},
                    facts={"extent_bytes": extent, "steps_a_round": REPEATED},
                )
            )


def _round(engine: RankedEngine, step: int, repeated: int) -> tuple[float, float]:
    """The median microseconds of a step, and the mean of the slower pager's own."""
    before = engine.commit_seconds()
    waited = []
    for _ in range(repeated):
        waited.append(1e6 * engine.grow(step))
        time.sleep(PAUSE)
    spent = [
        1e6 * (after - began) / repeated
        for after, began in zip(engine.commit_seconds(), before, strict=True)
    ]
    engine.release_all()
    return Samples("us", waited).median, max(spent)


def measure_refusal(report: Report, kind: str, directory: Path) -> None:
    """Adds what becomes of extents that the second rank's device has no room for."""
    extent = plan_of(BLOCK_MAJOR, Rank(kind).driver()).extent_bytes
    room = LEFT // extent if kind == "cuda" else TOO_MANY
    budget = 0 if kind == "cuda" else (room + 1) * extent  # and the pinned one
    ranks = [Rank(kind, 0), Rank(kind, 1, budget)]
    with rank_pagers.engine(ranks, BLOCK_MAJOR, room + TOO_MANY, directory, "refused") as engine:
        filled: AbstractContextManager[None] = nullcontext()
        if kind == "cuda":
            filled = rank_pagers.full(1, LEFT)
        pool, per_extent = engine.pool, engine.plan.blocks_per_extent
        with filled:
            pool.begin_step(1)
            granted = pool.ensure((room + TOO_MANY) * per_extent, PATIENCE)
            if granted:
                raise Slow("the device that was to be full was not")
            _until_answered(engine)
            refused = [row.describe()["denials"] for row in engine.rows]
            committed = [row.describe()["commits"] for row in engine.rows]
            split = _split(engine)
            held = _held(engine)
        report.add(Row("refusal: extents refused on rank 0", Samples("", refused[:1]), NONE))
        report.add(Row("refusal: extents refused on rank 1", Samples("", refused[1:]), SOME))
        back = committed[0] - committed[1]
        report.add(Row("refusal: given back on rank 0", Samples("", [back]), SOME))
        report.add(Row("refusal: extents on one rank alone", Samples("", [split]), NONE))
        report.add(Row("refusal: held by one rank alone", Samples("B", [held]), NONE))
        if kind != "cuda":
            return  # a budget is for good
        time.sleep(RETRY)
        pool.begin_step(2)
        began = time.perf_counter()
        granted = pool.ensure((room + TOO_MANY) * per_extent, PATIENCE)
        spent = 1e3 * (time.perf_counter() - began)
        report.add(Row("refusal: granted once there is room", Samples("", [float(granted)]), SOME))
        report.add(Row("refusal: all of it on both ranks after", Samples("ms", [spent])))
        report.add(
            Row("refusal: extents on one rank alone then", Samples("", [_split(engine)]), NONE)
        )


def _until_answered(engine: RankedEngine) -> None:
    """Until its pagers are at rest."""
    deadline = time.monotonic() + PATIENCE
    while not engine.at_rest:
        if time.monotonic() > deadline:
            raise Slow("what was refused was not given back")
        engine.pool.wait(0.01)
        # Answers are taken in by whoever asks for more than there is.
        engine.pool.ensure(engine.pool.num_unhashed + 1, 0)


def _split(engine: RankedEngine) -> int:
    states = [row.committed() for row in engine.rows]
    return sum(len(set(extent)) > 1 for extent in zip(*states, strict=True))


def _held(engine: RankedEngine) -> int:
    held = [row.describe()["held_bytes"] for row in engine.rows]
    return max(held) - min(held)


def _two_devices(kind: str) -> bool:
    try:
        Rank(kind, 1).driver()
    except _C.Error as error:
        print(f"no second device: {error}")
        return False
    return True


def main() -> int:
    parser = arguments_of(__doc__ or "")
    parser.add_argument("--driver", choices=("host", "cuda"), default="host")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    if not _two_devices(options.driver):
        return 2
    report = Report("ranks", options)
    with scratch.directory() as directory:
        parts: dict[str, Callable[[], None]] = {
            "growth": lambda: measure_growth(report, options.driver, rounds, directory),
            "floor": lambda: measure_floor(report, options.driver, rounds),
            "refusal": lambda: measure_refusal(report, options.driver, directory),
        }
        for part, measured in parts.items():
            try:
                measured()
            except (Slow, EOFError, _C.Error) as failure:
                report.fail(part, str(failure) or "a pager's process ended")
    return report.finish(f"Two ranks on the {options.driver} driver; times a growth step")


if __name__ == "__main__":
    sys.exit(main())
