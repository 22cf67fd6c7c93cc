"""Orders to living leases: given to all, waited for together, and what came of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvcached import _C, inventory
from kvcached.cli.amounts import shown
from kvcached.cli.outcome import refused, say, say_json, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kvcached.inventory import Instance, LeaseView

#: An idle engine answers within milliseconds, a busy one after the step it is in.
PATIENCE_SECONDS = 2.0
# A pager keeps released handles for 200 ms in case they are used again.
_HANDLES_SECONDS = 0.4


@dataclass(frozen=True)
class Answer:
    """What came of one lease's order."""

    lease: LeaseView
    """As it was before the order."""
    seconds: float | None
    """Until the engine said that it is carried out; None where it has not."""
    held: int
    """Afterwards."""

    @property
    def freed(self) -> int:
        """What the lease holds less than before."""
        return max(self.lease.held - self.held, 0)


def carry_out(
    leases: Sequence[LeaseView], give: Callable[[_C.Ledger, LeaseView], int], frees: int = 0
) -> tuple[Answer, ...]:
    """Gives every lease its order and waits for the answers, PATIENCE_SECONDS for all together.

    `give` returns the order's number; `frees` is how many bytes should come back. Raises
    CommandError where a lease ends meanwhile.
    """
    ledgers: dict[str, _C.Ledger] = {}
    begun = time.monotonic()
    try:
        for path in {lease.ledger for lease in leases}:
            ledgers[path] = _C.Ledger.open(path)
        numbers = [give(ledgers[lease.ledger], lease) for lease in leases]
        took: list[float | None] = []
        for lease, number in zip(leases, numbers, strict=True):
            left = max(begun + PATIENCE_SECONDS - time.monotonic(), 0.0)
            done = ledgers[lease.ledger].wait_done(lease.slot, number, left)
            took.append(time.monotonic() - begun if done else None)
    except _C.Error as error:
        raise refused(f"{error}; the engine has ended meanwhile") from None
    held = _held(ledgers)
    deadline = time.monotonic() + _HANDLES_SECONDS
    while (
        None not in took
        and time.monotonic() < deadline
        and sum(lease.held - held.get((lease.ledger, lease.slot), 0) for lease in leases) < frees
    ):
        time.sleep(0.01)
        held = _held(ledgers)
    return tuple(
        Answer(lease, seconds, held.get((lease.ledger, lease.slot), 0))
        for lease, seconds in zip(leases, took, strict=True)
    )


def _held(ledgers: Mapping[str, _C.Ledger]) -> dict[tuple[str, int], int]:
    return {
        (path, lease["slot"]): lease["held_bytes"]
        for path, ledger in ledgers.items()
        for lease in ledger.describe()["leases"]
    }


@dataclass(frozen=True)
class Report:
    """What came of one order to some engines."""

    what: str
    """The order, as people read it."""
    members: tuple[Instance, ...]
    answers: tuple[Answer, ...]

    def lines(self) -> list[tuple[str, bool]]:
        """A line for each engine: when the order took effect and what it freed, or when the engine
        will act; and whether it has acted."""
        found = []
        for member in self.members:
            given = self._of(member)
            seconds = _slowest(given)
            if seconds is None:
                line = f"{self.what} is recorded, not carried out yet: {_why_not(member)}"
            else:
                freed = shown(sum(answer.freed for answer in given))
                held = shown(sum(answer.held for answer in given))
                line = (
                    f"{self.what}, in force after {seconds * 1000:.0f} ms, freed {freed}, "
                    f"holds {held}"
                )
            found.append((f"{member.name}: {line}", seconds is not None))
        return found

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {"orders": [_json(member, self._of(member), self.what) for member in self.members]}

    def say(self, *, as_json: bool) -> None:
        """Prints it; what has not been carried out is a warning."""
        if as_json:
            say_json(self.as_json())
            return
        for line, done in self.lines():
            (say if done else warn)(line)

    def _of(self, member: Instance) -> list[Answer]:
        return [answer for answer in self.answers if answer.lease in member.leases]


def _slowest(given: Sequence[Answer]) -> float | None:
    slowest = 0.0
    for answer in given:
        if answer.seconds is None:
            return None
        slowest = max(slowest, answer.seconds)
    return slowest


def _why_not(member: Instance) -> str:
    if member.seen_seconds_ago > inventory.STALLED_SECONDS:
        return (
            f"the engine is stopped (silent for {member.seen_seconds_ago:.0f} s) and acts as soon "
            "as it runs again"
        )
    return (
        f"the engine has not answered within {PATIENCE_SECONDS:g} s and acts after the step it is "
        "in; new grants follow the order already"
    )


def _json(member: Instance, given: Sequence[Answer], what: str) -> dict[str, Any]:
    seconds = _slowest(given)
    return {
        "name": member.name,
        "order": what,
        "in_force": seconds is not None,
        "seconds": seconds,
        "freed_bytes": sum(answer.freed for answer in given),
        "held_bytes": sum(answer.held for answer in given),
        "warning": None if seconds is not None else _why_not(member),
        "leases": [
            {
                "device": answer.lease.device,
                "rank": answer.lease.rank,
                "seconds": answer.seconds,
                "freed_bytes": answer.freed,
                "held_bytes": answer.held,
            }
            for answer in given
        ],
    }
