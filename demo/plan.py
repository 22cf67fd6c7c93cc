"""What the demo asks, and when: bursts of requests with pauses between them.

Deterministic: both servers get the same questions in the same order at the same moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Burst:
    """Requests that are sent at one moment, and the silence after their last answer."""

    requests: int
    max_tokens: int
    pause_seconds: float


FULL = (
    Burst(requests=4, max_tokens=96, pause_seconds=4),
    Burst(requests=24, max_tokens=96, pause_seconds=4),
    Burst(requests=12, max_tokens=224, pause_seconds=3),
)
"""About 55 s on two cores: small, wide, long. Every burst must end in visible silence."""

QUICK = (
    Burst(requests=2, max_tokens=32, pause_seconds=2),
    Burst(requests=8, max_tokens=48, pause_seconds=3),
)
"""About 12 s, for continuous integration."""


def questions() -> Iterator[str]:
    """An endless-enough supply (48) of different questions, neighbours on different topics."""
    for form, topic in product(ASKED, TOPICS):
        yield form.format(topic)
