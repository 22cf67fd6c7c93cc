"""What benchmarks.solo asks an engine, phase by phase: the same for vanilla and elastic."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from benchmarks import arrivals

#: Tokens of the shortest prompt and of the shortest answer, where lengths are mixed.
SHORTEST = 16


@dataclass(frozen=True)
class Request:
    """A prompt, how many tokens are to follow, and when it is due: seconds from the start."""

    prompt: list[int]
    tokens: int
    due: float = 0.0


class Prompts:
    """Random ones, the same for the same order; none is a prefix of another."""

    def __init__(self, order: dict[str, Any], vocabulary: int) -> None:
        self._order = order
        self._ids = range(3, vocabulary)

    def request(self, generator: random.Random, due: float = 0.0, tokens: int = 0) -> Request:
        """One request; `tokens` is the length of its answer, drawn where it is 0."""
        length, answer = self._order["prompt_tokens"], self._order["output_tokens"]
        if self._order["mixed"]:
            length = generator.randint(SHORTEST, length)
            answer = generator.randint(SHORTEST, answer)
        return Request(generator.choices(self._ids, k=length), tokens or answer, due)

    def burst(self, turn: int, count: int) -> list[Request]:
        generator = random.Random(turn)
        return [self.request(generator) for _ in range(count)]

    def steady(self, turn: int) -> list[Request]:
        generator = random.Random(f"steady {turn}")
        due = arrivals.steady(self._order["rate"], self._order["steady_seconds"], turn)
        return [self.request(generator, moment) for moment in due]

    def ramp(self) -> list[Request]:
        generator = random.Random("ramp")
        count, seconds = self._order["ramp"], self._order["ramp_seconds"]
        tokens = self._order["ramp_tokens"]
        return [
            self.request(generator, number * seconds / count, tokens) for number in range(count)
        ]
