"""What ``--json`` prints of devices and instances; docs/kvctl.md promises the names."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvcached.cli.place import Reading
    from kvcached.inventory import Device, Instance, LeaseView

#: Those of a lease's fields that are no sizes.
_PLAIN = {
    *("device", "ledger", "slot", "group", "instance", "engine", "row", "rank", "pid", "user"),
    *("alive", "joined_seconds_ago", "seen_seconds_ago", "floor_is_default", "weight", "grants"),
    *("denials", "orders", "orders_done", "orders_done_seconds_ago"),
}


def lease(view: LeaseView) -> dict[str, Any]:
    """One rank's lease; sizes carry their unit in the name, as `Ledger.describe()` has them."""
    told = dataclasses.asdict(view)
    named = {name if name in _PLAIN else f"{name}_bytes": told[name] for name in told}
    return {**named, "state": view.state}


def instance(member: Instance) -> dict[str, Any]:
    """One engine, its sizes summed over ranks and devices."""
    return {
        "name": member.name,
        "group": member.group,
        "instance": member.instance,
        "engine": member.engine,
        "state": member.state,
        "ranks": member.ranks,
        "devices": list(member.devices),
        "pids": list(member.pids),
        "held_bytes": member.held,
        "live_bytes": member.live,
        "cached_bytes": member.cached,
        "slack_bytes": member.slack,
        "keep_bytes": member.keep,
        "floor_bytes": member.floor,
        "limit_bytes": member.limit,
        "group_limit_bytes": member.group_limit,
        "weight": member.weight,
        "wanted_bytes": member.wanted,
        "demand_bytes": member.demand,
        "entitlement_bytes": member.entitlement,
        "promised_bytes": member.promised,
        "pressure_bytes": member.pressure,
        "virtual_bytes": member.virtual,
        "grants": member.grants,
        "denials": member.denials,
        "reclaimed_bytes": member.reclaimed,
        "leases": [lease(view) for view in member.leases],
    }


def device(account: Device) -> dict[str, Any]:
    """One device's account, without its leases."""
    return {
        "id": account.id,
        "driver": account.driver,
        "ledger": account.path,
        "policy": account.policy,
        "capacity_bytes": account.capacity,
        "used_bytes": account.used,
        "total_bytes": account.total,
        "free_bytes": account.free,
        "contended": account.contended,
        "deaths": account.deaths,
    }


def reading(found: Reading) -> dict[str, Any]:
    """Everything that `list` shows."""
    return {
        "directory": str(found.directory),
        "devices": [device(account) for account in found.devices],
        "instances": [instance(member) for member in found.instances],
        "problems": [dataclasses.asdict(problem) for problem in found.problems],
    }
