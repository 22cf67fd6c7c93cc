"""When requests come: seconds from the start, drawn at random and the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable


def steady(rate: float, seconds: float, seed: int) -> list[float]:
    """A Poisson process of `rate` requests a second."""
    return _thinned(lambda _: rate, rate, seconds, seed)


def up_and_down(peak: float, seconds: float, seed: int) -> list[float]:
    """A Poisson process whose rate climbs from 0 to `peak` requests a second and back."""
    return _thinned(lambda moment: peak * (1 - abs(2 * moment / seconds - 1)), peak, seconds, seed)


def _thinned(rate: Callable[[float], float], most: float, seconds: float, seed: int) -> list[float]:
    # Lewis and Shedler's thinning, Naval Research Logistics Quarterly 26 (1979), 403-413.
    generator = random.Random(seed)
    moments: list[float] = []
    moment = 0.0
    while most > 0 and (moment := moment + generator.expovariate(most)) < seconds:
        if generator.random() * most < rate(moment):
            moments.append(moment)
    return moments
