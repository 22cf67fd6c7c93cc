"""Samples of one quantity, and what a reader wants to know of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Samples:
    """Everything that was measured of one quantity, in one unit."""

    unit: str
    values: Sequence[float]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a quantity without a single sample")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    def percentile(self, percent: float) -> float:
        """The value that `percent` per cent of the samples do not exceed; interpolated."""
        ordered = sorted(self.values)
        place = (len(ordered) - 1) * percent / 100
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

    def as_dict(self) -> dict[str, object]:
        """The samples and their summary, for JSON."""
        return {
            "unit": self.unit,
            "count": len(self.values),
            "median": self.median,
            "min": min(self.values),
            "quartile_1": self.percentile(25),
            "quartile_3": self.percentile(75),
            "p90": self.percentile(90),
            "p99": self.percentile(99),
            "max": max(self.values),
            "samples": list(self.values),
        }


def ratios(ours: Samples, theirs: Samples) -> Samples:
    """Ours over theirs, pair by pair: neighbours in time share the machine's mood."""
    pairs = zip(ours.values, theirs.values, strict=True)
    return Samples("ratio", [mine / other for mine, other in pairs])


def number(value: float) -> str:
    """A value as tables show it: four digits or so."""
    if value == 0:
        return "0"
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
