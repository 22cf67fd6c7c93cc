"""The layout "extent": in every extent, the pages of one layer lie together, layer behind layer.

Attention reads a layer's pages one block after the other. Where all layers of a block lie together
it jumps from each page to the next, which costs an H200 some hundredths of its time; where the
layers lie apart, an extent is a driver call a layer. Here an extent is one piece of memory and a
layer's pages are neighbours in it:

    extent 0                         extent 1
    layer 0        layer 1           layer 0        layer 1
    page 0  1  2   page 0  1  2      page 3  4  5   page 3  4  5

Kernels find a page at `id * page` bytes from the layer's beginning. So the ids that vLLM knows
blocks by have gaps: in this figure layer 0 begins at the region's first page and layer 1 three
pages behind, and blocks 3, 4 and 5 have the ids 6, 7 and 8.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_cache_interface import KVCacheTensor

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from kvcached import _C
    from kvcached_vllm.kv_placement import Slice

#: The name in a row and of KVCACHED_LAYOUT.
EXTENT = "extent"
#: Bytes of one layer in an extent, where extents may become large enough for it.
_TOGETHER = 512 << 10
#: Bytes of an extent beyond which no more pages are put together.
_LARGEST_EXTENT = 32 << 20


@dataclass(frozen=True)
class BlockIds:
    """Which id vLLM knows a block by, and back. Without `layers` it is the block's number."""

    blocks_per_extent: int
    layers: int = 1
    """How many layers take turns."""

    @property
    def period(self) -> int:
        """From an extent's first id to the next one's."""
        return self.blocks_per_extent * self.layers

    def id_of(self, block: int) -> int:
        """A block's id."""
        extent, within = divmod(block, self.blocks_per_extent)
        return extent * self.period + within

    def block_of(self, block_id: Any) -> Any:
        """The block with an id; of a tensor of ids, a tensor. -1 where no block has it."""
        extent, within = block_id // self.period, block_id % self.period
        known = (within < self.blocks_per_extent) * 1
        return known * (extent * self.blocks_per_extent + within) - (1 - known)


def ids_of(facts: _C.RowDescription, config: KVCacheConfig) -> BlockIds:
    """The ids of a rank's blocks. `config`: vLLM's, of the scheduler or of a worker."""
    layers = len(config.kv_cache_tensors) if facts["layout"] == EXTENT else 1
    return BlockIds(facts["blocks_per_extent"], layers)


def least_extent_bytes(config: KVCacheConfig) -> int:
    """How large extents have to be for the layout to be worth it."""
    return min(_LARGEST_EXTENT, _TOGETHER * len(config.kv_cache_tensors))


def fits(config: KVCacheConfig, blocks_per_extent: int) -> bool:
    """Whether a configuration with the layers apart can be laid out in such extents: pages of one
    size, and no extent that is short."""
    sizes = {tensor.size for tensor in config.kv_cache_tensors}
    return len(sizes) == 1 and config.num_blocks % blocks_per_extent == 0


def by_extent(config: KVCacheConfig, blocks_per_extent: int) -> tuple[KVCacheConfig, list[Slice]]:
    """What vLLM is given in place of a configuration that fits(): every layer's tensor reaches from
    its first page to its last, over those of the others; and where in the region each lies."""
    ids = BlockIds(blocks_per_extent, len(config.kv_cache_tensors))
    page = config.kv_cache_tensors[0].size // config.num_blocks
    made = copy.copy(config)
    made.num_blocks = ids.id_of(config.num_blocks - 1) + 1
    size = made.num_blocks * page
    made.kv_cache_tensors = [
        KVCacheTensor(size=size, shared_by=tensor.shared_by) for tensor in config.kv_cache_tensors
    ]
    part = blocks_per_extent * page
    return made, [(layer * part, size) for layer in range(ids.layers)]
