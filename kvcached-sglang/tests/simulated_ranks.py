"""Four ranks of one engine in one thread: each a real keeper, supply, pool and pager over a device
of its own, which go on in an order that a seed chooses.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from greenlet import getcurrent, greenlet
from simulated_device import Device
from simulated_scheduler import Scheduler, arrivals
from simulated_window import WindowScheduler

from kvcached_sglang.agreement import IDLE_TURNS, Agreement
from kvcached_sglang.needs import is_idle

RANKS = 4
TURNS = 12
#: Steps of the world in one schedule before somebody must have been forgotten.
_MOST_STEPS = 20000

MakeAgreement = Callable[[Callable[[list[int]], list[int]], int], Agreement]


class Diverged(AssertionError):
    """Ranks decided otherwise."""


class _Meeting:
    """Where ranks wait for each other: a reduction that keeps nobody's place."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self._rounds: list[list[list[int]]] = []
        self.met = [0] * RANKS
        """How often each rank came."""

    def least(self, rank: int, numbers: list[int]) -> list[int]:
        index = self.met[rank]
        self.met[rank] += 1
        if index == len(self._rounds):
            self._rounds.append([])
        told = self._rounds[index]
        told.append(numbers)
        while len(told) < RANKS:
            self._wait()
        return [min(each) for each in zip(*told, strict=True)]


class SimulatedRanks:
    """One schedule: everything that a seed can choose."""

    def __init__(
        self, where: Path, seed: int, agree: MakeAgreement = Agreement, windows: bool = False
    ) -> None:
        """`windows`: of the pages of sliding windows, and not those of full attention."""
        self.seed = seed
        self.happened: Counter[str] = Counter()
        """How often a rank decided what."""
        self._dice = random.Random(seed)
        self._meeting = _Meeting(self._wait)
        self._arrivals = arrivals(self._dice, TURNS, 30 if windows else 12)
        cap = self._dice.choice((-1, 0, 6))
        chunk = self._dice.choice((None, 3, 7))
        kind = WindowScheduler if windows else Scheduler
        self._devices = [Device(where, rank, self._dice, self._wait) for rank in range(RANKS)]
        self.schedulers = [
            kind(device, agree(self._least_for(rank), RANKS), cap, chunk)
            for rank, device in enumerate(self._devices)
        ]

    def _least_for(self, rank: int) -> Callable[[list[int]], list[int]]:
        return lambda numbers: self._meeting.least(rank, numbers)

    @staticmethod
    def _wait() -> None:
        # Only devices happen, or other ranks go on, until the conductor comes back.
        conductor: Any = getcurrent().parent
        if conductor is not None:
            conductor.switch()

    def run(self) -> None:
        """Raises Diverged at the first turn that ranks leave in different ways."""
        try:
            for turn, came in enumerate(self._arrivals):
                self._all([lambda it=it, came=came: it.turn(came) for it in self.schedulers])
                self._compare(turn)
            if all(map(is_idle, self.schedulers)):
                # Beyond a meeting of idle ranks.
                self._all([lambda it=it: it.rest(IDLE_TURNS + 2) for it in self.schedulers])
                self._compare(TURNS)
        finally:
            for device in self._devices:
                device.stop()

    def _all(self, work: list[Callable[[], None]]) -> None:
        """Every rank does its part, a while at a time, in between what happens on devices."""
        going = [greenlet(part) for part in work]
        for _ in range(_MOST_STEPS):
            if not going:
                return
            self._dice.choice(self._devices).happen()
            one = self._dice.choice(going)
            one.switch()
            if one.dead:
                going.remove(one)
        raise Diverged(f"seed {self.seed}: ranks wait for each other: {self._decided()}")

    def _compare(self, turn: int) -> None:
        first = self.schedulers[0].decided
        alike = all(scheduler.decided == first for scheduler in self.schedulers)
        if not alike or len(set(self._meeting.met)) != 1:
            raise Diverged(f"seed {self.seed}, turn {turn}: {self._decided()}")
        for what, *_ in first:
            self.happened[what] += 1
        for scheduler in self.schedulers:
            self.happened["waits"] += scheduler.waits
            scheduler.waits = 0
            scheduler.decided.clear()

    def _decided(self) -> str:
        return "; ".join(
            f"rank {rank}: {scheduler.decided}" for rank, scheduler in enumerate(self.schedulers)
        )
