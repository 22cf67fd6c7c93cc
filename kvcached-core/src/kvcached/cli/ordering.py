"""Orders by name: whom they go to, whether they can be, and giving them.

Every function raises CommandError where the name is nobody's or the order is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcached.cli import amounts, bounds
from kvcached.cli.amounts import shown
from kvcached.cli.carrying_out import Report, carry_out
from kvcached.cli.outcome import not_found, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvcached import _C
    from kvcached.cli.place import Reading
    from kvcached.inventory import Instance, LeaseView

# As LeaseTerms and KVCACHED_WEIGHT take it; the ledger counts thousandths.
_LEAST_WEIGHT, _MOST_WEIGHT = 0.001, 1_000_000.0


@dataclass(frozen=True)
class _Whom:
    """The living among those that a name stands for."""

    name: str
    is_group: bool
    members: tuple[Instance, ...]

    @property
    def leases(self) -> list[LeaseView]:
        return [lease for member in self.members for lease in member.leases]

    def on(self, device: str) -> list[LeaseView]:
        return [lease for lease in self.leases if lease.device == device]

    def sizes(self, found: Reading, size: str, none: str) -> dict[str, int | None]:
        """What a size is on each of the devices; None where it is the word `none`."""
        return {
            id: None if size == none else amounts.parse_amount(size, found.device(id).capacity)
            for id in dict.fromkeys(lease.device for lease in self.leases)
        }

    def order(
        self, what: str, give: Callable[[_C.Ledger, LeaseView], int], frees: int = 0
    ) -> Report:
        return Report(what, self.members, carry_out(self.leases, give, frees))


def limit(found: Reading, name: str, size: str) -> Report:
    """Bounds a group's sum on each device, or each lease of one instance; "none" for no bound."""
    whom = _living(found, name)
    sizes = whom.sizes(found, size, "none")
    frees = 0
    for device, wanted in sizes.items():
        if wanted is None:
            continue
        if whom.is_group:
            bounds.check_group_limit(whom.name, device, whom.on(device), wanted)
            frees += max(sum(lease.held for lease in whom.on(device)) - wanted, 0)
            continue
        for lease in whom.on(device):
            bounds.check_limit(lease, wanted)
            frees += max(lease.held - wanted, 0)

    def give(ledger: _C.Ledger, lease: LeaseView) -> int:
        order = ledger.set_group_limit if whom.is_group else ledger.set_limit
        return order(lease.slot, sizes[lease.device] or 0)

    what = "group limit" if whom.is_group else "limit"
    return whom.order(f"{what} {_each(sizes, 'none')}", give, frees)


def floor(found: Reading, name: str, size: str) -> Report:
    """Guarantees so much to each lease; "default" for one request of the longest length."""
    whom = _living(found, name)
    sizes = whom.sizes(found, size, "default")
    for device, wanted in sizes.items():
        if wanted is not None:
            floors = dict.fromkeys(whom.on(device), wanted)
            bounds.check_floors(found.device(device), floors)

    def give(ledger: _C.Ledger, lease: LeaseView) -> int:
        return ledger.set_floor(lease.slot, sizes[lease.device])

    return whom.order(f"floor {_each(sizes, 'default')}", give)


def weight(found: Reading, name: str, number: float) -> Report:
    """Sets each lease's share against others'."""
    if not math.isfinite(number) or not _LEAST_WEIGHT <= number <= _MOST_WEIGHT:
        raise refused(f"a weight of {number:g} is not from {_LEAST_WEIGHT:g} to {_MOST_WEIGHT:.0f}")
    whom = _living(found, name)
    return whom.order(
        f"weight {number:g}", lambda ledger, lease: ledger.set_weight(lease.slot, number)
    )


def trim(found: Reading, name: str, size: str = "") -> Report | None:
    """Takes slack and cached prefixes from each lease: `size`, at most what it has, or all of it.
    None where nobody has any."""
    whom = _living(found, name)
    wanted = whom.sizes(found, size, "")
    sizes = {}
    for lease in whom.leases:
        there = lease.cached + lease.slack
        asked = wanted[lease.device]
        sizes[lease] = there if asked is None else min(asked, there)
    if not any(sizes.values()):
        return None
    members = [member for member in whom.members if any(sizes[lease] for lease in member.leases)]
    those = _Whom(whom.name, whom.is_group, tuple(members))

    def give(ledger: _C.Ledger, lease: LeaseView) -> int:
        return ledger.trim(lease.slot, sizes[lease])

    frees = sum(sizes.values())
    return those.order(f"trim by {shown(frees)}", give, frees)


def _living(found: Reading, name: str) -> _Whom:
    """Whom a name stands for, without the dead."""
    whom = found.find(name)
    members = tuple(member for member in whom.instances if member.alive)
    if not members:
        raise not_found(f"{whom.name} is dead; 'kvctl delete {whom.name}' removes what it has left")
    return _Whom(whom.name, whom.is_group, members)


def _each(sizes: dict[str, int | None], none: str) -> str:
    """A size, or one for each device where they differ."""
    told: Sequence[str] = [none if size is None else shown(size) for size in sizes.values()]
    if len(set(told)) == 1:
        return told[0]
    return ", ".join(f"{size} on {device}" for device, size in zip(sizes, told, strict=True))
