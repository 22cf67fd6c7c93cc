"""What the demo asks, whom, and when: bursts that move from one model to the other and back.

Deterministic: both set-ups get the same questions in the same order with the same pauses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

ASKED = (
    "Explain {} to a child.",
    "Write a short story about {}.",
    "What are the three most important facts about {}?",
    "Write a letter to a friend about {}.",
)
TOPICS = (
    "rain",
    "a lighthouse",
    "photosynthesis",
    "bread",
    "the city of Rome",
    "the moon",
    "bees",
    "a steam engine",
    "glass",
    "a small library",
    "rivers",
    "chess",
)

BLOCK_TOKENS = 256
"""vLLM's block. A question and its answer fit into one, so that a conversation takes one block
from its first token to its last, and what fits into a budget can be counted on fingers."""


@dataclass(frozen=True)
class Burst:
    """Requests sent to one model at one moment, and the silence after their last answer."""

    model: str
    requests: int
    max_tokens: int
    pause_seconds: float


@dataclass(frozen=True)
class Plan:
    """Bursts, one after the other: while one model is busy, the others are idle."""

    bursts: tuple[Burst, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """The names under which models are served, in the order of their first burst."""
        return tuple(dict.fromkeys(burst.model for burst in self.bursts))

    def renamed(self, names: tuple[str, ...]) -> Plan:
        """The same for models of these names."""
        new = dict(zip(self.models, names, strict=True))
        return Plan(tuple(replace(burst, model=new[burst.model]) for burst in self.bursts))

    @property
    def requests(self) -> int:
        """How many requests there are in all."""
        return sum(burst.requests for burst in self.bursts)

    @property
    def at_once(self) -> int:
        """The most requests that one model has at a time."""
        return max(burst.requests for burst in self.bursts)

    @property
    def middle(self) -> Burst:
        """The burst in which kvtop is asked what it sees."""
        return self.bursts[len(self.bursts) // 2]


def _there_and_back(requests: int, max_tokens: int, pause_seconds: float) -> Plan:
    first, second = "alpha", "beta"
    models = (first, second, first)
    return Plan(tuple(Burst(model, requests, max_tokens, pause_seconds) for model in models))


# Numbers of which half of the budget is whole blocks and hardly more, so that a split wastes none.
FULL = _there_and_back(requests=16, max_tokens=192, pause_seconds=3)
"""Some 80 s on two cores where all 16 run at once; half as long again where six of them wait."""

QUICK = _there_and_back(requests=10, max_tokens=32, pause_seconds=2)
"""Some 20 s, for continuous integration."""


def questions() -> Iterator[str]:
    """An endless-enough supply (48) of different questions, neighbours on different topics."""
    for form, topic in product(ASKED, TOPICS):
        yield form.format(topic)
