"""Limits and floors that cannot be: who is in the way, and what could be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcached.cli.amounts import shown
from kvcached.cli.outcome import refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvcached.inventory import Device, LeaseView


def check_limit(lease: LeaseView, limit: int) -> None:
    """CommandError where a limit is below what a lease cannot give back."""
    if limit == 0:
        raise refused("a limit of 0 bytes leaves no engine running; 'none' takes the limit away")
    if limit < lease.keep:
        raise refused(
            f"{lease.group}/{lease.instance}: rank {lease.rank} on {lease.device} cannot go below "
            f"{shown(lease.keep)} (what is always committed, and its oldest request), so a limit "
            f"of {shown(limit)} is refused; the least is {lease.keep} bytes at this moment"
        )


def check_group_limit(group: str, device: str, leases: Sequence[LeaseView], limit: int) -> None:
    """The same for the sum of a group's leases on one device."""
    if limit == 0:
        raise refused("a limit of 0 bytes leaves no engine running; 'none' takes the limit away")
    least = sum(lease.keep for lease in leases)
    if limit < least:
        whose = ", ".join(f"{lease.instance} {shown(lease.keep)}" for lease in leases if lease.keep)
        raise refused(
            f"{group}: its engines on {device} cannot go below {shown(least)} ({whose}), so a "
            f"limit of {shown(limit)} is refused; the least is {least} bytes at this moment"
        )


def check_floors(device: Device, floors: Mapping[LeaseView, int]) -> None:
    """CommandError where new floors are above their leases' limits, or do not fit a device
    together with those of the others."""
    for lease, floor in floors.items():
        if lease.limit is not None and floor > lease.limit:
            raise refused(
                f"{lease.group}/{lease.instance}: a floor of {shown(floor)} is above its limit of "
                f"{shown(lease.limit)}; raise the limit first"
            )
    others = [
        lease
        for lease in device.leases
        if lease.alive and lease not in floors and not lease.floor_is_default
    ]
    wanted = sum(floors.values())
    if wanted + sum(lease.floor for lease in others) <= device.capacity:
        return
    whose = ", ".join(
        f"{lease.group}/{lease.instance} has {shown(lease.floor)}"
        for lease in others
        if lease.floor
    )
    raise refused(
        f"floors of {shown(wanted)} do not fit into the {shown(device.capacity)} that engines on "
        f"{device.id} can hold{f' ({whose})' if whose else ''}; lower one of them"
    )
