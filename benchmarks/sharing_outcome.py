"""What servers did with the load of benchmarks.sharing, and the rows that compare both kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.meters import Reading
from benchmarks.report import Report, Row, Target
from benchmarks.samples import Samples, ratios
from benchmarks.traffic import Traffic

_GIB = 1 << 30
FIRST_TOKEN = Target(at_most=300)
BETWEEN_TOKENS = Target(at_most=1.0)
NO_FAILURE = Target(at_most=0)
#: Seconds between two points of a timeline that is written down.
_STEP = 0.25


@dataclass(frozen=True)
class Outcome:
    """What one kind of servers did with the load, round by round."""

    ready: float
    rounds: list[Traffic]
    readings: list[Reading]

    def percentiles(self, name: str, percent: float) -> Samples:
        return Samples(
            "ms", [round_.milliseconds(name).percentile(percent) for round_ in self.rounds]
        )

    def means(self, name: str) -> Samples:
        return Samples("ms", [round_.milliseconds(name).mean for round_ in self.rounds])

    def peak(self, name: str) -> float | None:
        """`gpu` or `held` at its highest under load, in GiB."""
        begin, end = self.rounds[0].start, self.rounds[-1].ended
        read = [getattr(item, name) for item in self.readings if begin <= item.time <= end]
        found = [value for value in read if value is not None]
        return max(found) / _GIB if found else None

    @property
    def timeline(self) -> list[dict[str, Any]]:
        """Memory in MiB from the first request of the last round on, for a plot."""
        points: list[dict[str, Any]] = []
        due = start = self.rounds[-1].start
        for reading in self.readings:
            if reading.time >= due:
                due = reading.time + _STEP
                held = {name: value >> 20 for name, value in reading.held_by.items()}
                gpu = None if reading.gpu is None else reading.gpu >> 20
                points.append({"t": round(reading.time - start, 2), "gpu": gpu, "held": held})
        return points


def add_rows(report: Report, outcomes: dict[str, Outcome]) -> None:
    """Adds what there is: of one kind alone there is no comparison."""

    def compare(name: str, found: dict[str, Samples], target: Target | None = None) -> None:
        if len(found) < 2:
            figure, target = next(iter(found.values())), None
        else:
            figure = ratios(found["shared"], found["split"])
        report.add(Row(name, figure, target, found))

    def absolute(name: str, found: dict[str, Samples], target: Target) -> None:
        if "shared" in found:
            report.add(Row(name, found["shared"], target, found))
        else:
            report.add(Row(name, found["split"], parts=found))

    each = outcomes.items()
    compare("TTFT mean", {kind: found.means("ttft") for kind, found in each})
    compare("TTFT p50", {kind: found.percentiles("ttft", 50) for kind, found in each})
    absolute("TTFT p99", {kind: found.percentiles("ttft", 99) for kind, found in each}, FIRST_TOKEN)
    compare("TPOT mean", {kind: found.means("tpot") for kind, found in each}, BETWEEN_TOKENS)
    compare("TPOT p99", {kind: found.percentiles("tpot", 99) for kind, found in each})
    absolute(
        "failed requests",
        {
            kind: Samples("", [len(round_.failures) for round_ in found.rounds])
            for kind, found in each
        },
        NO_FAILURE,
    )
    compare(
        "requests",
        {kind: Samples("", [len(round_.all) for round_ in found.rounds]) for kind, found in each},
    )
    compare("late p99", {kind: found.percentiles("late", 99) for kind, found in each})
    compare("all servers ready", {kind: Samples("s", [found.ready]) for kind, found in each})
    peaks = {kind: found.peak("gpu") for kind, found in each}
    if all(peak is not None for peak in peaks.values()):
        compare(
            "GPU memory, peak",
            {kind: Samples("GiB", [peak or 0.0]) for kind, peak in peaks.items()},
        )
    held = outcomes["shared"].peak("held") if "shared" in outcomes else None
    if held is not None:
        report.add(Row("KV memory held by all, peak", Samples("GiB", [held])))
