"""What an elastic engine says of itself in its log when it starts, a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcached import _C
from kvcached.sizes import format_size

if TYPE_CHECKING:
    from kvcached._C import RowDescription


def cache(facts: RowDescription, block_size: int, world: int, sanity_check: bool) -> str:
    """The cache of an engine of `world` ranks, by the facts of one of them."""
    ranks = f", {world} ranks" if world > 1 else ""
    tokens = (facts["num_blocks"] - 1) * block_size
    return (
        f"kvcached: elastic KV cache: virtual {format_size(facts['virtual_bytes'])} "
        f"({tokens:,} tokens in {facts['num_blocks']:,} blocks of {block_size}), "
        f"limit {format_size(facts['limit_bytes'])}, "
        f"extent {format_size(facts['extent_bytes'])} ({facts['blocks_per_extent']} blocks), "
        f"layout {facts['layout']}, driver {facts['driver']}{ranks}"
        f"{', sanity check on' if sanity_check else ''}"
    )


def lease(facts: RowDescription) -> str:
    """The lease of that rank, and its device."""
    device = _C.Ledger.open(facts["ledger"]).describe()
    held = next(found for found in device["leases"] if found["slot"] == facts["lease_slot"])
    floor = format_size(held["floor_bytes"])
    if held["floor_is_default"]:
        # Which of the two it was cut to.
        whole = held["floor_bytes"] < device["capacity_bytes"] // len(device["leases"])
        floor += " (one longest request)" if whole else " (an equal share of the device)"
    return (
        f"kvcached: lease on {device['device']}: {held['group']}/{held['instance']}, floor "
        f"{floor}, weight {held['weight']:g}; {format_size(device['used_bytes'])} of "
        f"{format_size(device['capacity_bytes'])} in use by {len(device['leases'])} leases"
    )
