"""One rank's region, pager and lease."""

from __future__ import annotations

import atexit
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kvcached import _C, shm
from kvcached.sizes import format_size
from kvcached_sglang import NotElastic, identity
from kvcached_sglang.kv_buffers import KVBuffers, shape_of

if TYPE_CHECKING:
    from kvcached.settings import Settings

_log = logging.getLogger("sglang.kvcached")
_DLPACK_DEVICE = {"cpu": 1, "cuda": 2}


@dataclass(frozen=True)
class Place:
    """Which rank of which engine this is."""

    instance: str
    rank: int
    ranks: int
    longest_tokens: int
    """The longest request that the engine admits."""
    pool: int = 0
    """Which of its caches this is."""
    pools: int = 1
    """How many caches the rank has."""

    @property
    def row(self) -> int:
        """The number of this cache's row: those of all ranks' first caches come first."""
        return self.pool * self.ranks + self.rank

    @property
    def rows(self) -> int:
        """Rows of the engine."""
        return self.pools * self.ranks


class RankMemory:
    """The address space of one KV pool, and who makes it real."""

    def __init__(self, pool: Any, driver: _C.Driver, settings: Settings, place: Place) -> None:
        """Takes the driver over. Raises NotElastic where the memory cannot be had."""
        self.buffers = KVBuffers(shape_of(pool), driver.granularity)
        self.place = place
        self._settings = settings
        self._device = torch.device(pool.device)
        ordinal = torch.cuda.current_device() if self._device.type == "cuda" else 0
        self.path = str(identity.row_path(settings, place.instance, place.row))
        _remove_what_the_dead_left(settings)
        geometry = self.buffers.geometry(settings.page_size_mb << 20, driver.max_mappings)
        whole = geometry.num_extents * geometry.extent_bytes(driver.granularity)
        limit = min(settings.limit or whole, whole)
        self.pager = _C.Pager(
            driver,
            geometry,
            self.path,
            identity.engine_name(settings, place.instance),
            "layer",
            place.row,
            limit,
            ledger=str(shm.ledger_path(identity.directory(settings), driver.device_id)),
            shared=bool(settings.shm_group),
            terms=self._terms(geometry, limit, driver.granularity),
            sanity_check=settings.sanity_check,
        )
        try:
            self.pager.start()
        except _C.Error as error:
            raise NotElastic(f"kvcached: {error}; kvctl list shows who holds memory") from None
        # SGLang ends its schedulers with a signal at times; then others remove the row.
        atexit.register(self.pager.stop)
        self.region: torch.Tensor = torch.from_dlpack(
            self.pager.region(0, _DLPACK_DEVICE[self._device.type], ordinal)
        )

    def _terms(self, geometry: _C.Geometry, limit: int, granule: int) -> _C.LeaseTerms:
        wanted = self._settings
        # A rank's caches share what it was given.
        pools = self.place.pools
        floor = None if wanted.floor is None else wanted.floor // pools
        if floor is not None and floor > limit:
            raise NotElastic(
                f"kvcached: KVCACHED_FLOOR={format_size(floor)} is above the limit of "
                f"{format_size(limit)}; lower it, or raise KVCACHED_LIMIT"
            )
        longest = min(self.place.longest_tokens, self.buffers.shape.rows)
        pages = 1 - (-longest // self.buffers.shape.page_size)
        extents = min(-(-pages // geometry.blocks_per_extent), geometry.num_extents)
        return _C.LeaseTerms(
            identity.group_of(wanted),
            self.place.instance,
            engine="sglang",
            limit_bytes=limit,
            floor_bytes=floor,
            weight=wanted.weight / pools,
            utilisation=wanted.gpu_utilization,
            device_limit_bytes=wanted.capacity,
            longest_bytes=extents * geometry.extent_bytes(granule),
        )

    def ledger(self) -> _C.LedgerDescription:
        """What the device's account says."""
        return _C.Ledger.open(_C.Row.attach(self.path).describe()["ledger"]).describe()

    def describe(self, name: str = "") -> list[str]:
        """What the start-up log says of it. `name`: which of the engine's caches it is."""
        facts = _C.Row.attach(self.path).describe()
        page = self.buffers.shape.page_size
        ranks = f", {self.place.ranks} ranks" if self.place.ranks > 1 else ""
        device = self.ledger()
        lease = next(found for found in device["leases"] if found["slot"] == facts["lease_slot"])
        lines = [
            f"kvcached: elastic KV cache{name and ' of ' + name}: "
            f"virtual {format_size(facts['virtual_bytes'])} "
            f"({(facts['num_blocks'] - 1) * page:,} tokens in pages of {page}), "
            f"limit {format_size(facts['limit_bytes'])}, "
            f"extent {format_size(facts['extent_bytes'])} "
            f"({facts['blocks_per_extent'] * page:,} tokens), driver {facts['driver']}{ranks}"
            f"{', sanity check on' if self._settings.sanity_check else ''}",
            f"kvcached: lease on {device['device']}: {lease['group']}/{lease['instance']}, floor "
            f"{format_size(lease['floor_bytes'])}, weight {lease['weight']:g}; "
            f"{format_size(device['used_bytes'])} of {format_size(device['capacity_bytes'])} in "
            f"use by {len(device['leases'])} leases",
        ]
        bound = min(facts["limit_bytes"], device["capacity_bytes"])
        holds = bound // facts["extent_bytes"] * facts["blocks_per_extent"] - 1
        if holds < facts["num_blocks"] - 1:
            lines.append(
                f"kvcached: at most {holds * page:,} of these tokens can have memory at once; a "
                "longer request would wait for ever: raise KVCACHED_LIMIT or KVCACHED_CAPACITY, "
                "or lower --max-total-tokens"
            )
        return lines


def _remove_what_the_dead_left(settings: Settings) -> None:
    directory = str(identity.directory(settings))
    for path in [*_C.remove_dead_rows(directory), *_C.remove_dead_ledgers(directory)]:
        _log.info("kvcached: removed %s, left behind by a dead engine", path)
