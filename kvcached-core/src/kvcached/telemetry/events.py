"""What happened to an engine's memory between two looks at its rows and ledgers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvcached.hooks import Event

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvcached._C import LeaseDescription, LedgerDescription, RowDescription


@dataclass(frozen=True)
class _Look:
    """What was seen at one moment."""

    rows: dict[int, RowDescription]
    """By rank."""
    ledgers: dict[str, LedgerDescription]
    """By device."""
    own: dict[tuple[str, int], LeaseDescription]
    """This engine's leases by device and slot."""
    others: dict[tuple[str, int, int], LeaseDescription]
    """The neighbours' leases by device, slot and process."""

    @property
    def pressure(self) -> int:
        return sum(lease["pressure_bytes"] for lease in self.own.values())

    @property
    def reclaimed(self) -> int:
        return sum(lease["reclaimed_bytes"] for lease in self.own.values())


class EventSource:
    """Compares successive looks at one engine's rows and at its devices' ledgers.

    For a thread that looks at most a few times a second: events tell of the time since the look
    before. Counts and bytes are sums over the engine's ranks.
    """

    def __init__(self, group: str, instance: str) -> None:
        self._group = group
        self._instance = instance
        self._before: _Look | None = None
        self._pressed_since: tuple[float, int] | None = None

    def compare(
        self, rows: Sequence[RowDescription], ledgers: Sequence[LedgerDescription]
    ) -> list[Event]:
        """The events since the last call; none at the first. `rows` are the engine's, one a rank;
        `ledgers` are those of the devices that it runs on."""
        now = self._look(rows, ledgers)
        before, self._before = self._before, now
        if before is None:
            return []
        return [
            *self._moved(before, now),
            *self._denied(before, now),
            *self._pressure(before, now),
            *self._changed(before, now),
            *self._died(before, now),
        ]

    def _look(self, rows: Sequence[RowDescription], ledgers: Sequence[LedgerDescription]) -> _Look:
        own: dict[tuple[str, int], LeaseDescription] = {}
        others: dict[tuple[str, int, int], LeaseDescription] = {}
        for ledger in ledgers:
            for lease in ledger["leases"]:
                if (lease["group"], lease["instance"]) == (self._group, self._instance):
                    own[ledger["device"], lease["slot"]] = lease
                else:
                    others[ledger["device"], lease["slot"], lease["pid"]] = lease
        by_device = {ledger["device"]: ledger for ledger in ledgers}
        return _Look({row["rank"]: row for row in rows}, by_device, own, others)

    def _event(
        self, kind: str, extents: int = 0, bytes: int = 0, detail: str = "", **facts: Any
    ) -> Event:
        return Event(kind, f"{self._group}/{self._instance}", extents, bytes, detail, facts)

    def _moved(self, before: _Look, now: _Look) -> Iterator[Event]:
        commits = releases = commit_bytes = release_bytes = commit_ns = release_ns = 0
        for rank, row in now.rows.items():
            if (old := before.rows.get(rank)) is None:
                continue
            committed = row["commits"] - old["commits"]
            released = row["releases"] - old["releases"]
            commits += committed
            releases += released
            commit_bytes += committed * row["extent_bytes"]
            release_bytes += released * row["extent_bytes"]
            commit_ns += row["commit_ns"] - old["commit_ns"]
            release_ns += row["release_ns"] - old["release_ns"]
        if commits:
            yield self._event("commit", commits, commit_bytes, seconds=commit_ns / 1e9)
        if releases:
            yield self._event("release", releases, release_bytes, seconds=release_ns / 1e9)

    def _denied(self, before: _Look, now: _Look) -> Iterator[Event]:
        extents = bytes = 0
        for rank, row in now.rows.items():
            if (old := before.rows.get(rank)) is not None:
                denied = row["denials"] - old["denials"]
                extents += denied
                bytes += denied * row["extent_bytes"]
        if extents:
            why = self._why_denied(before, now)
            yield self._event("denied", extents, bytes, why, why=why)

    @staticmethod
    def _why_denied(before: _Look, now: _Look) -> str:
        """The likeliest reason, from what the ledgers say a moment later."""
        refused = False
        for (device, slot), lease in now.own.items():
            old = before.own.get((device, slot))
            if old is None or lease["denials"] == old["denials"]:
                continue
            refused = True
            ledger = now.ledgers[device]
            if _full(lease["held_bytes"], lease["extent_bytes"], lease["limit_bytes"]):
                return "the limit is reached"
            group = [
                other["held_bytes"]
                for other in ledger["leases"]
                if other["group"] == lease["group"]
            ]
            if _full(sum(group), lease["extent_bytes"], lease["group_limit_bytes"]):
                return "the group's limit is reached"
            if _full(ledger["used_bytes"], lease["extent_bytes"], ledger["capacity_bytes"]):
                return f"device {device} is full"
        if refused:
            return "what is free is promised to others, or was taken back"
        return "the driver refused" if now.own else "the limit is reached, or the driver refused"

    def _pressure(self, before: _Look, now: _Look) -> Iterator[Event]:
        if now.pressure and self._pressed_since is None:
            self._pressed_since = (time.monotonic(), before.reclaimed)
            yield self._event("pressure", 0, now.pressure, "others need memory", state="began")
        elif not now.pressure and self._pressed_since is not None:
            since, reclaimed = self._pressed_since
            self._pressed_since = None
            yield self._event(
                "pressure",
                0,
                max(0, now.reclaimed - reclaimed),
                "nobody else needs memory",
                state="ended",
                seconds=time.monotonic() - since,
            )

    def _changed(self, before: _Look, now: _Look) -> Iterator[Event]:
        # The ranks of an engine are mostly changed together, which is one event.
        changes: dict[tuple[str, float | None, float | None], list[int]] = {}
        for key, lease in now.own.items():
            if (old := before.own.get(key)) is not None:
                for change in _changes(old, lease):
                    changes.setdefault(change, []).append(lease["rank"])
        for (what, old_value, new_value), ranks in changes.items():
            yield self._event(
                "limit",
                detail=f"{what} changed",
                what=what,
                was=old_value,
                now=new_value,
                ranks=sorted(ranks),
            )

    def _died(self, before: _Look, now: _Look) -> Iterator[Event]:
        for device, ledger in now.ledgers.items():
            if (old := before.ledgers.get(device)) is None:
                continue
            deaths = ledger["deaths"] - old["deaths"]
            if deaths <= 0:
                continue
            gone = [
                lease
                for key, lease in before.others.items()
                if key[0] == device and key not in now.others
            ]
            # Where others have left in good order meanwhile, who died is not known.
            sure = len(gone) == deaths
            names = [f"{lease['group']}/{lease['instance']}" for lease in gone]
            yield self._event(
                "died",
                bytes=sum(lease["held_bytes"] for lease in gone) if sure else 0,
                detail="its memory was given back",
                device=device,
                deaths=deaths,
                who=sorted(set(names)),
                certain=sure,
            )


def _full(held: int, more: int, most: int | None) -> bool:
    return most is not None and held + more > most


def _changes(
    old: LeaseDescription, new: LeaseDescription
) -> Iterator[tuple[str, float | None, float | None]]:
    if old["limit_bytes"] != new["limit_bytes"]:
        yield "limit", old["limit_bytes"], new["limit_bytes"]
    if old["group_limit_bytes"] != new["group_limit_bytes"]:
        yield "group limit", old["group_limit_bytes"], new["group_limit_bytes"]
    # The default floor follows the number of neighbours, and nobody has changed it.
    set_by_hand = not (old["floor_is_default"] and new["floor_is_default"])
    if set_by_hand and old["floor_bytes"] != new["floor_bytes"]:
        yield "floor", old["floor_bytes"], new["floor_bytes"]
    if old["weight"] != new["weight"]:
        yield "weight", old["weight"], new["weight"]
