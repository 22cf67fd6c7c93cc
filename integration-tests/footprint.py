"""How much KV memory an elastic engine may hold: every bound that the tests use.

The bounds follow from the geometry of the cache and the documented settings, never from
what kvcached says it holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GRANULE = 64 * 1024  # The host driver's; see native/include/kvcached/driver.hpp.
SLACK_EXTENTS = 10  # KVCACHED_MAX_RESERVED_PAGES
CACHED_TOKENS = 16_000  # KVCACHED_MAX_CACHED_TOKENS

# Blocks are handed out lowest extent first, so that few extents are half empty. What half
# empty ones there are under load costs less than this.
FRAGMENTATION = 1.15

# Block 0, to which vLLM points every padded entry of a block table, is never released.
ALWAYS_COMMITTED_BLOCKS = 1


@dataclass(frozen=True)
class Geometry:
    """One rank's cache: the layers, what a block takes in each, the tokens a block holds."""

    layers: int
    block_bytes_per_layer: int
    block_tokens: int
    ranks: int = 1
    places_per_layer: int = 1
    """2 where all keys of a layer lie before all of its values: half a block is in each."""

    @classmethod
    def from_report(cls, report: Mapping[str, Any]) -> Geometry:
        return cls(
            layers=report["layers"],
            block_bytes_per_layer=report["block_bytes_per_layer"],
            block_tokens=report["block_tokens"],
            ranks=report["ranks"],
            places_per_layer=report["places_per_layer"],
        )

    @property
    def block_bytes(self) -> int:
        return self.layers * self.block_bytes_per_layer * self.ranks

    @property
    def extent_blocks(self) -> int:
        """Blocks whose bytes share whole granules, in every place of every layer at once."""
        together = self.block_bytes_per_layer // self.places_per_layer
        return math.lcm(GRANULE, together) // together

    @property
    def extent_bytes(self) -> int:
        return self.extent_blocks * self.block_bytes

    def idle_bound(
        self, cached_tokens: int = CACHED_TOKENS, slack_extents: int = SLACK_EXTENTS
    ) -> int:
        """Bytes that may remain one second after the last request has ended."""
        always = math.ceil(ALWAYS_COMMITTED_BLOCKS / self.extent_blocks)
        cached_blocks = cached_tokens // self.block_tokens
        cached = math.ceil(cached_blocks / self.extent_blocks)
        return (always + cached + slack_extents) * self.extent_bytes

    def load_bound(self, live_blocks: int, slack_extents: int = SLACK_EXTENTS) -> int:
        """Bytes that may be held while so many blocks are in use."""
        live = math.ceil(FRAGMENTATION * live_blocks * self.block_bytes)
        return live + (slack_extents + ALWAYS_COMMITTED_BLOCKS) * self.extent_bytes
