"""What one set-up did and held."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from demo.memory import Sample
from demo.workload import Answer, PlayedBurst

IDLE_SECONDS = 1.0
"""How long after the last answer memory is read as idle."""


@dataclass(frozen=True)
class Outcome:
    """Moments are seconds since the first request, sizes are bytes."""

    name: str
    answers: list[Answer]
    bursts: list[PlayedBurst]
    held: dict[str, list[Sample]]
    """By model."""
    tokens_per_second: float

    @property
    def mean_wait(self) -> float:
        """Seconds to the first token, on average."""
        waits = self._waits()
        return sum(waits) / len(waits)

    @property
    def p99_wait(self) -> float:
        """Seconds to the first token; no more than one request in a hundred waited longer."""
        waits = self._waits()
        return waits[math.ceil(0.99 * len(waits)) - 1]

    @property
    def peak(self) -> int:
        """The most that all models together held at a moment."""
        return max(self.at(sample.moment) for samples in self.held.values() for sample in samples)

    @property
    def peak_of_one(self) -> int:
        """The most that one model held."""
        return max(sample.held_bytes for samples in self.held.values() for sample in samples)

    @property
    def idle(self) -> int:
        """What all models together held when the last answer was a second old."""
        return self.at(self.bursts[-1].ended + IDLE_SECONDS)

    def at(self, moment: float) -> int:
        """What all models together held at a moment."""
        return sum(self.of(model, moment) for model in self.held)

    def of(self, model: str, moment: float) -> int:
        """What one model held at a moment."""
        samples = self.held[model]
        later = bisect_right(samples, moment, key=lambda sample: sample.moment)
        return samples[max(0, later - 1)].held_bytes

    def _waits(self) -> list[float]:
        return sorted(answer.seconds_to_first_token for answer in self.answers)
