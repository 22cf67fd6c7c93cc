"""Who holds how much: every ledger of a directory, read once into plain values.

Sizes are bytes, times are seconds. Nothing here changes a ledger.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvcached import _C

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

State = Literal["dead", "stalled", "waiting", "reclaiming", "ok"]

#: A pager says that it lives at least once a second; one that was silent for longer is stopped.
STALLED_SECONDS = 5.0

_PREFIX = "kvcached_"


class UnknownName(LookupError):
    """No instance, or more than one, has this name; the line lists those there are."""


@dataclass(frozen=True)
class Problem:
    """A ledger that cannot be read."""

    path: str
    reason: str
    """Why, and what to do: written by another version, damaged, or whose it is."""


@dataclass(frozen=True)
class LeaseView:
    """One rank's lease on one device, as `Ledger.describe()` told it."""

    device: str
    ledger: str
    """The ledger's file."""
    slot: int
    group: str
    instance: str
    engine: str
    row: str
    """The rank's row file, or an empty text."""
    rank: int
    pid: int
    user: int
    alive: bool
    joined_seconds_ago: float
    seen_seconds_ago: float
    virtual: int
    extent: int
    held: int
    backed: int
    live: int
    cached: int
    slack: int
    leaving: int
    reserve: int
    keep: int
    """What no limit can take away: pinned extents, and what the oldest request holds."""
    wanted: int
    demand: int
    limit: int | None
    group_limit: int | None
    floor: int
    floor_is_default: bool
    weight: float
    entitlement: int
    promised: int
    pressure: int
    trim: int
    grants: int
    denials: int
    reclaimed: int
    orders: int
    orders_done: int
    orders_done_seconds_ago: float

    @property
    def state(self) -> State:
        """The first that applies of dead, stalled, waiting (for memory it wants), reclaiming (asked
        to give back) and ok."""
        if not self.alive:
            return "dead"
        if self.seen_seconds_ago > STALLED_SECONDS:
            return "stalled"
        if self.wanted > self.held:
            return "waiting"
        return "reclaiming" if self.pressure else "ok"


@dataclass(frozen=True)
class Device:
    """One device's account."""

    id: str
    """Its UUID; "host" for this machine's memory."""
    driver: str
    path: str
    """The ledger's file."""
    policy: str
    granule: int
    capacity: int
    """What all leases together may hold."""
    used: int
    total: int
    free: int
    """What the device said was free when it was last asked."""
    sampled_seconds_ago: float
    contended: bool
    deaths: int
    leases: tuple[LeaseView, ...]


@dataclass(frozen=True)
class Instance:
    """One engine: its leases over all ranks and devices. Sizes are sums over the leases."""

    group: str
    instance: str
    leases: tuple[LeaseView, ...]

    @property
    def name(self) -> str:
        """GROUP/INSTANCE."""
        return f"{self.group}/{self.instance}"

    @property
    def engine(self) -> str:
        """The engine's kind, such as "vllm"."""
        return self.leases[0].engine

    @property
    def ranks(self) -> int:
        """How many ranks hold a lease."""
        return len({lease.rank for lease in self.leases})

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices, in the order of ranks."""
        return tuple(dict.fromkeys(lease.device for lease in self.leases))

    @property
    def pids(self) -> tuple[int, ...]:
        """The workers, in the order of ranks."""
        return tuple(dict.fromkeys(lease.pid for lease in self.leases))

    @property
    def alive(self) -> bool:
        """Whether every rank's owner lives. An engine does not outlive a rank."""
        return all(lease.alive for lease in self.leases)

    @property
    def state(self) -> State:
        """The worst of its leases' states."""
        states = {lease.state for lease in self.leases}
        order: tuple[State, ...] = ("dead", "stalled", "waiting", "reclaiming")
        return next((state for state in order if state in states), "ok")

    @property
    def held(self) -> int:
        """Taken from the devices."""
        return sum(lease.held for lease in self.leases)

    @property
    def backed(self) -> int:
        """Physical memory that exists; follows `held`."""
        return sum(lease.backed for lease in self.leases)

    @property
    def live(self) -> int:
        """Under blocks of running requests."""
        return sum(lease.live for lease in self.leases)

    @property
    def cached(self) -> int:
        """Under prefixes of finished requests alone."""
        return sum(lease.cached for lease in self.leases)

    @property
    def slack(self) -> int:
        """Committed ahead of need."""
        return sum(lease.slack for lease in self.leases)

    @property
    def leaving(self) -> int:
        """On the way back to the devices."""
        return sum(lease.leaving for lease in self.leases)

    @property
    def keep(self) -> int:
        """What no limit can take away."""
        return sum(lease.keep for lease in self.leases)

    @property
    def virtual(self) -> int:
        """Address space."""
        return sum(lease.virtual for lease in self.leases)

    @property
    def wanted(self) -> int:
        """What the requests at hand need in all."""
        return sum(lease.wanted for lease in self.leases)

    @property
    def demand(self) -> int:
        """The peak of `wanted` in the last second."""
        return sum(lease.demand for lease in self.leases)

    @property
    def floor(self) -> int:
        """Guaranteed while it lives."""
        return sum(lease.floor for lease in self.leases)

    @property
    def limit(self) -> int | None:
        """Most it may hold, or None where a rank has no bound."""
        return _sum_of_bounds(lease.limit for lease in self.leases)

    @property
    def group_limit(self) -> int | None:
        """Most its group may hold on its devices together, or None where one has no bound."""
        by_device = {lease.device: lease.group_limit for lease in self.leases}
        return _sum_of_bounds(by_device.values())

    @property
    def weight(self) -> float:
        """Its share against others'; the largest of its leases'."""
        return max(lease.weight for lease in self.leases)

    @property
    def entitlement(self) -> int:
        """Its fair share of what there is, at this moment's demands."""
        return sum(lease.entitlement for lease in self.leases)

    @property
    def promised(self) -> int:
        """Entitled to, and not held yet."""
        return sum(lease.promised for lease in self.leases)

    @property
    def pressure(self) -> int:
        """What it is asked to give back."""
        return sum(lease.pressure for lease in self.leases)

    @property
    def grants(self) -> int:
        """How often it got memory."""
        return sum(lease.grants for lease in self.leases)

    @property
    def denials(self) -> int:
        """How often it was refused memory."""
        return sum(lease.denials for lease in self.leases)

    @property
    def reclaimed(self) -> int:
        """What it has given back because somebody asked."""
        return sum(lease.reclaimed for lease in self.leases)

    @property
    def seen_seconds_ago(self) -> float:
        """When the most silent rank last said that it lives."""
        return max(lease.seen_seconds_ago for lease in self.leases)


def devices(directory: str | Path) -> tuple[list[Device], list[Problem]]:
    """Every ledger of a directory, by path, and those that cannot be read.

    A directory that is missing holds none.
    """
    found: list[Device] = []
    problems: list[Problem] = []
    for path in sorted(map(str, Path(directory).glob("*.ledger"))):
        try:
            found.append(_device(_C.Ledger.open(path).describe()))
        except _C.Error as error:
            # The last lease takes its ledger with it, perhaps since we listed the directory.
            if Path(path).exists():
                problems.append(Problem(path, str(error).removeprefix(f"{path}: ")))
    return found, problems


def instances(devices: Iterable[Device]) -> list[Instance]:
    """The engines that hold leases on these devices, by name; leases by rank and device."""
    members: dict[tuple[str, str], list[LeaseView]] = {}
    for device in devices:
        for lease in device.leases:
            members.setdefault((lease.group, lease.instance), []).append(lease)
    return [
        Instance(*key, tuple(sorted(members[key], key=lambda lease: (lease.rank, lease.device))))
        for key in sorted(members)
    ]


@dataclass(frozen=True)
class Found:
    """What a name stands for."""

    name: str
    """GROUP, or GROUP/INSTANCE, as the ledgers spell it."""
    is_group: bool
    instances: tuple[Instance, ...]

    @property
    def leases(self) -> tuple[LeaseView, ...]:
        """The leases of all its instances."""
        return tuple(lease for member in self.instances for lease in member.leases)


def find(name: str, among: Sequence[Instance]) -> Found:
    """The instances that a name stands for.

    A name is GROUP or GROUP/INSTANCE, with or without the prefix ``kvcached_``; INSTANCE may be
    abbreviated as long as one alone begins like that. Raises UnknownName.
    """
    group, slash, wanted = name.partition("/")
    exact = [member for member in among if member.group == group]
    members = exact or [
        member
        for member in among
        if member.group.removeprefix(_PREFIX) == group.removeprefix(_PREFIX)
    ]
    if not members:
        raise UnknownName(f"no group {group!r}; {_those(among)}")
    if not slash:
        return Found(members[0].group, True, tuple(members))
    same = [member for member in members if member.instance == wanted]
    alike = same or [member for member in members if wanted and member.instance.startswith(wanted)]
    if not alike:
        raise UnknownName(f"no instance {name!r}; {_those(among)}")
    if len(alike) > 1:
        raise UnknownName(f"{name!r} is short for several; {_those(alike)}")
    return Found(alike[0].name, False, (alike[0],))


def _those(among: Sequence[Instance]) -> str:
    return "there are " + ", ".join(member.name for member in among) if among else "there are none"


def _sum_of_bounds(bounds: Iterable[int | None]) -> int | None:
    total = 0
    for bound in bounds:
        if bound is None:
            return None
        total += bound
    return total


_FIELDS = frozenset(item.name for item in dataclasses.fields(LeaseView))


def _lease(device: str, ledger: str, told: Mapping[str, Any]) -> LeaseView:
    named = {name.removesuffix("_bytes"): value for name, value in told.items()}
    known = {name: value for name, value in named.items() if name in _FIELDS}
    return LeaseView(device=device, ledger=ledger, **known)


def _device(told: _C.LedgerDescription) -> Device:
    return Device(
        id=told["device"],
        driver=told["driver"],
        path=told["path"],
        policy=told["policy"],
        granule=told["granule_bytes"],
        capacity=told["capacity_bytes"],
        used=told["used_bytes"],
        total=told["device_total_bytes"],
        free=told["device_free_bytes"],
        sampled_seconds_ago=told["sampled_seconds_ago"],
        contended=told["contended"],
        deaths=told["deaths"],
        leases=tuple(_lease(told["device"], told["path"], lease) for lease in told["leases"]),
    )
