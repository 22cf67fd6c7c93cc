"""The rows of benchmarks.solo that compare time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.gpu_memory import HAS_GPU
from benchmarks.report import Report, Row, Target
from benchmarks.samples import Samples, ratios
from benchmarks.solo_run import Run

#: Without a GPU the pager works on the cores that also compute.
SPEED = Target(at_least=0.99 if HAS_GPU else 0.98)
FIRST_TOKEN = Target(at_most=1.02)
BETWEEN_TOKENS = Target(at_most=1.03)
READY = Target(at_most=1.0)
_STEADY: tuple[tuple[str, str, float, Target | None], ...] = (
    ("TTFT", "ttft", 50, FIRST_TOKEN),
    ("TTFT", "ttft", 99, None),
    ("TPOT", "tpot", 50, None),
    ("TPOT", "tpot", 99, BETWEEN_TOKENS),
)


def add_rows(
    report: Report, elastic: list[Run], vanilla: list[Run], side_by_side: bool = False
) -> None:
    """Adds the comparison of both, pair by pair.

    Engines that are alive side by side go first in turns, and an engine that goes twice in a row
    may be slower the second time; two rounds together have each of them once in each place.
    """
    _note_tokens(report, elastic, vanilla)
    if side_by_side:
        elastic, vanilla = ([run.in_twos for run in runs] for runs in (elastic, vanilla))

    def compare(
        name: str, unit: str, of: Callable[[Run], list[float]], target: Target | None = None
    ) -> None:
        ours, theirs = (
            Samples(unit, [value for run in runs for value in of(run)])
            for runs in (elastic, vanilla)
        )
        report.add(Row(name, ratios(ours, theirs), target, {"elastic": ours, "vanilla": theirs}))

    compare("output tokens/s", "/s", lambda run: run.of_rounds("output_tokens_per_second"), SPEED)
    compare("burst: TTFT p50", "ms", lambda run: run.percentile("rounds", "ttft", 50, 1e3))
    compare("burst: TPOT p99", "ms", lambda run: run.percentile("rounds", "tpot", 99, 1e3))
    if all(
        turn["decoding_seconds"] for run in (*elastic, *vanilla) for turn in run.report["rounds"]
    ):
        compare(
            "burst: while all decode",
            "ms",
            lambda run: run.of_rounds("decoding_seconds", 1e3),
        )
    steady = [turn for run in (*elastic, *vanilla) for turn in run.report["steady"]]
    if steady and all(turn["ttft"] for turn in steady):
        for name, key, percent, target in _STEADY:
            compare(
                f"steady: {name} p{percent}",
                "ms",
                partial(Run.percentile, phase="steady", name=key, percent=percent, scale=1e3),
                target,
            )
    compare("processor time", "s", lambda run: run.of_rounds("processor_seconds"))
    compare("time to ready", "s", lambda run: [run.seconds_to_ready], READY)


def _note_tokens(report: Report, elastic: list[Run], vanilla: list[Run]) -> None:
    def same(one: Run, other: Run) -> list[bool]:
        return [
            mine["tokens"] == others["tokens"]
            for mine, others in zip(one.report["rounds"], other.report["rounds"], strict=True)
        ]

    ours = [equal for one, two in zip(elastic, vanilla, strict=True) for equal in same(one, two)]
    own = [equal for run in vanilla[1:] for equal in same(vanilla[0], run)]
    print(
        f"rounds with the same tokens: elastic and vanilla {sum(ours)} of {len(ours)}, "
        f"vanilla and itself {sum(own)} of {len(own)}"
    )
    report.note(same_tokens_as_vanilla=ours, vanilla_same_tokens_as_itself=own)
