"""One engine's life in benchmarks.solo: what it reported, and what was seen from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from benchmarks.meters import Reading
from benchmarks.samples import Samples

#: Seconds between two points of a timeline that is written down.
_STEP = 0.2


@dataclass(frozen=True)
class Run:
    """Moments are those of time.time()."""

    started: float
    report: dict[str, Any]
    readings: list[Reading]

    def during(self, begin: float, end: float) -> list[Reading]:
        """What was read between two moments, or the last before where nothing was."""
        found = [reading for reading in self.readings if begin <= reading.time <= end]
        before = [reading for reading in self.readings if reading.time <= end]
        return found or before[-1:] or self.readings[:1]

    @property
    def fresh(self) -> list[Reading]:
        """What was read when it was ready and had no request yet."""
        return self.during(self.report["ready"] + 0.5, self.report["first"]["began"])

    @property
    def busy(self) -> list[Reading]:
        """What was read under load, the first burst aside."""
        return self.during(self.report["rounds"][0]["began"], self.report["last_answer"])

    @property
    def one_second_later(self) -> list[Reading]:
        """What was read a second after the last answer."""
        return self.during(self.report["last_answer"] + 1.0, self.report["last_answer"] + 1.25)

    @property
    def seconds_to_ready(self) -> float:
        return float(self.report["ready"] - self.started)

    def grown(self, phase: dict[str, Any]) -> dict[str, int]:
        """How far the counters went during a phase; the longest wait is that since the start."""
        before = self.during(self.started, phase["began"])[-1].counters
        after = self.during(phase["ended"], phase["ended"] + 0.1)[-1].counters
        return {
            name: value if name.startswith("longest") else value - before.get(name, 0)
            for name, value in after.items()
        }

    def of_rounds(self, name: str, scale: float = 1.0) -> list[float]:
        """One figure of every burst."""
        return [scale * float(turn[name]) for turn in self.report["rounds"]]

    def percentile(self, phase: str, name: str, percent: float, scale: float = 1.0) -> list[float]:
        """A percentile over the requests of every round of a phase."""
        return [
            Samples("", [scale * value for value in turn[name]]).percentile(percent)
            for turn in self.report[phase]
            if turn[name]
        ]

    @property
    def in_twos(self) -> Run:
        """The same with every two neighbouring rounds taken as one; of an odd number of them the
        last is left out."""
        twos = {
            phase: [_together(two) for two in list(pairwise(self.report[phase]))[::2]]
            for phase in ("rounds", "steady")
        }
        return replace(self, report={**self.report, **twos})

    @property
    def phases(self) -> dict[str, list[list[float]]]:
        """[begin, end] of every round of a phase, in seconds since the start."""
        played = {"warm-up": [self.report["warm_up"]], "bursts": self.report["rounds"]}
        if "ramp" in self.report:
            played["ramp"] = [self.report["ramp"]]
        if self.report["steady"]:
            played["steady"] = self.report["steady"]
        return {
            name: [
                [round(turn[moment] - self.started, 2) for moment in ("began", "ended")]
                for turn in turns
            ]
            for name, turns in played.items()
        }

    @property
    def timeline(self) -> list[list[float | None]]:
        """[seconds since the start, GPU MiB, KV MiB] for a plot."""
        points: list[list[float | None]] = []
        due = 0.0
        for reading in self.readings:
            if reading.time >= due:
                due = reading.time + _STEP
                points.append(
                    [
                        round(reading.time - self.started, 2),
                        None if reading.gpu is None else round(reading.gpu / (1 << 20)),
                        None if reading.held is None else round(reading.held / (1 << 20)),
                    ]
                )
        return points

    def __str__(self) -> str:
        """One line for the console."""
        speeds = ", ".join(f"{speed:,.0f}" for speed in self.of_rounds("output_tokens_per_second"))
        parts = [f"ready in {self.seconds_to_ready:.1f} s", f"{speeds} output tokens/s"]
        if self.report["steady"]:
            ttft = ", ".join(
                f"{value:,.1f}" for value in self.percentile("steady", "ttft", 50, 1e3)
            )
            tpot = ", ".join(
                f"{value:,.2f}" for value in self.percentile("steady", "tpot", 99, 1e3)
            )
            parts.append(f"steady: TTFT p50 {ttft} ms, TPOT p99 {tpot} ms")
        return "; ".join(parts)


def _together(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rounds as one: sums of what can be summed, every request's times."""
    whole = {
        name: sum(turn[name] for turn in rounds)
        for name in ("seconds", "processor_seconds", "output_tokens", "decoding_seconds")
    }
    times = {name: [t for turn in rounds for t in turn[name]] for name in ("ttft", "tpot")}
    return {**whole, **times, "output_tokens_per_second": whole["output_tokens"] / whole["seconds"]}
