"""The metrics: their names, what they say, and where in a ledger or a row each is read.

The collector, its tests and the documentation all go by this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvcached._C import RowDescription
    from kvcached.inventory import Device, LeaseView

_Source = TypeVar("_Source")

#: What a metric of one rank's lease, or of its pager, is labelled with. "instance" is Prometheus'
#: own label for the address it scraped, and "pid" is what ``prometheus_client`` takes for itself
#: where several processes serve; so ours have longer names.
LEASE_LABELS = ("device", "group", "engine_instance", "rank")
INFO_LABELS = ("device", "group", "engine_instance", "engine", "rank", "worker_pid")
DEVICE_LABELS = ("device",)

INFO = "kvcached_lease_info"
INFO_HELP = "Who holds a lease; always 1, to be joined with the other metrics of the lease."
UNREADABLE = "kvcached_unreadable_ledgers"
UNREADABLE_HELP = (
    "Files that should be ledgers and cannot be read, such as those of another version."
)


@dataclass(frozen=True)
class Metric(Generic[_Source]):
    """One metric, read from what the inventory or a row tells."""

    name: str
    """In full, as it is scraped: a counter ends with ``_total``."""
    kind: Literal["gauge", "counter"]
    help: str
    read: Callable[[_Source], float | None]
    """The value in base units, or None where there is none to tell."""


LEASE: tuple[Metric[LeaseView], ...] = (
    Metric(
        "kvcached_lease_held_bytes",
        "gauge",
        "Physical memory that the ledger has granted to the lease.",
        lambda lease: lease.held,
    ),
    Metric(
        "kvcached_lease_live_bytes",
        "gauge",
        "Extents in which running requests have blocks.",
        lambda lease: lease.live,
    ),
    Metric(
        "kvcached_lease_cached_bytes",
        "gauge",
        "Extents that only finished requests' prefixes keep committed.",
        lambda lease: lease.cached,
    ),
    Metric(
        "kvcached_lease_slack_bytes",
        "gauge",
        "Empty extents kept committed ahead of need.",
        lambda lease: lease.slack,
    ),
    Metric(
        "kvcached_lease_wanted_bytes",
        "gauge",
        "What the engine's requests need now, met or not.",
        lambda lease: lease.wanted,
    ),
    Metric(
        "kvcached_lease_demand_bytes",
        "gauge",
        "The peak of what was wanted within the last second.",
        lambda lease: lease.demand,
    ),
    Metric(
        "kvcached_lease_entitlement_bytes",
        "gauge",
        "The lease's fair share of the device, while anybody lacks memory; 0 otherwise.",
        lambda lease: lease.entitlement,
    ),
    Metric(
        "kvcached_lease_pressure_bytes",
        "gauge",
        "What the lease is asked to give back to others now.",
        lambda lease: lease.pressure,
    ),
    Metric(
        "kvcached_lease_limit_bytes",
        "gauge",
        "Most that the lease may hold; absent where nothing but the device bounds it.",
        lambda lease: lease.limit,
    ),
    Metric(
        "kvcached_lease_floor_bytes",
        "gauge",
        "Memory guaranteed to the lease while its owner lives.",
        lambda lease: lease.floor,
    ),
    Metric(
        "kvcached_lease_reserve_bytes",
        "gauge",
        "Memory beyond the cache that the engine will want in its next large step.",
        lambda lease: lease.reserve,
    ),
    Metric(
        "kvcached_lease_virtual_bytes",
        "gauge",
        "Address space of the cache.",
        lambda lease: lease.virtual,
    ),
    Metric(
        "kvcached_lease_weight",
        "gauge",
        "The lease's share against other leases' weights where they want more than there is.",
        lambda lease: lease.weight,
    ),
    Metric(
        "kvcached_lease_alive",
        "gauge",
        "1 while the owner's process lives; 0 until somebody has given back what it held.",
        lambda lease: lease.alive,
    ),
    Metric(
        "kvcached_lease_seen_seconds",
        "gauge",
        "Seconds since the owner last looked after its lease; a living owner that does not is "
        "stalled.",
        lambda lease: lease.seen_seconds_ago,
    ),
    Metric(
        "kvcached_lease_grants_total",
        "counter",
        "Times that the ledger let the lease hold more.",
        lambda lease: lease.grants,
    ),
    Metric(
        "kvcached_lease_denials_total",
        "counter",
        "Times that the ledger refused to let the lease hold more.",
        lambda lease: lease.denials,
    ),
    Metric(
        "kvcached_lease_reclaimed_bytes_total",
        "counter",
        "Memory that the lease gave back because others needed it.",
        lambda lease: lease.reclaimed,
    ),
)

PAGER: tuple[Metric[RowDescription], ...] = (
    Metric(
        "kvcached_pager_commits_total",
        "counter",
        "Extents that the pager has committed.",
        lambda row: row["commits"],
    ),
    Metric(
        "kvcached_pager_releases_total",
        "counter",
        "Extents that the pager has released.",
        lambda row: row["releases"],
    ),
    Metric(
        "kvcached_pager_denials_total",
        "counter",
        "Extents that the pager could not commit: refused by the ledger, the limit or the driver.",
        lambda row: row["denials"],
    ),
    Metric(
        "kvcached_pager_commit_seconds_total",
        "counter",
        "Time that the pager has spent on committing.",
        lambda row: row["commit_ns"] / 1e9,
    ),
    Metric(
        "kvcached_pager_release_seconds_total",
        "counter",
        "Time that the pager has spent on releasing.",
        lambda row: row["release_ns"] / 1e9,
    ),
)

DEVICE: tuple[Metric[Device], ...] = (
    Metric(
        "kvcached_device_capacity_bytes",
        "gauge",
        "Most that all leases on the device may hold together.",
        lambda device: device.capacity,
    ),
    Metric(
        "kvcached_device_used_bytes",
        "gauge",
        "What all leases on the device hold together.",
        lambda device: device.used,
    ),
    Metric(
        "kvcached_device_total_bytes",
        "gauge",
        "The device's memory.",
        lambda device: device.total,
    ),
    Metric(
        "kvcached_device_free_bytes",
        "gauge",
        "The device's free memory when a pager last looked.",
        lambda device: device.free,
    ),
    Metric(
        "kvcached_device_contended",
        "gauge",
        "1 while a lease on the device lacks memory.",
        lambda device: device.contended,
    ),
    Metric(
        "kvcached_device_deaths_total",
        "counter",
        "Leases whose owner died without leaving; what they held was given back.",
        lambda device: device.deaths,
    ),
)
