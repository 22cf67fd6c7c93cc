"""``kvctl delete``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer  # noqa: TC002 - it reads the annotations itself

from kvcached import _C
from kvcached.cli.amounts import shown
from kvcached.cli.outcome import refused, say, say_json
from kvcached.cli.place import AnyName, AsJson, Reading, read

if TYPE_CHECKING:
    from kvcached.inventory import LeaseView


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(delete)


def delete(context: typer.Context, name: AnyName = "", as_json: AsJson = False) -> None:
    """Remove what dead engines have left: leases, rows, and ledgers that nobody uses."""
    found = read(context)
    dead = _dead(found, name)
    for path in sorted({lease.ledger for lease in dead}):
        _C.Ledger.open(path).sweep()
    rows = _C.remove_dead_rows(str(found.directory))
    ledgers = _C.remove_dead_ledgers(str(found.directory))
    if as_json:
        leases = [
            {
                "name": f"{lease.group}/{lease.instance}",
                "rank": lease.rank,
                "device": lease.device,
                "freed_bytes": lease.held,
            }
            for lease in dead
        ]
        say_json({"leases": leases, "rows": sorted(rows), "ledgers": sorted(ledgers)})
        return
    for lease in dead:
        say(
            f"{lease.group}/{lease.instance}: removed the lease of rank {lease.rank} on "
            f"{lease.device}, {shown(lease.held)} given back"
        )
    for path in sorted([*rows, *ledgers]):
        say(f"removed {path}")
    if not (dead or rows or ledgers):
        say(f"nothing left behind in {found.directory}")


def _dead(found: Reading, name: str) -> list[LeaseView]:
    """The leases to remove; CommandError where the name is of somebody who lives."""
    if not name:
        return [lease for device in found.devices for lease in device.leases if not lease.alive]
    whom = found.find(name)
    living = [lease for lease in whom.leases if lease.alive]
    dead = [lease for lease in whom.leases if not lease.alive]
    if living and (not whom.is_group or not dead):
        pids = " ".join(str(pid) for pid in sorted({lease.pid for lease in living}))
        engine = living[0].engine or "the engine"
        raise refused(
            f"{whom.name} is alive; end {engine} itself (its workers are the processes {pids}), "
            "then its memory goes back without kvctl"
        )
    return dead
