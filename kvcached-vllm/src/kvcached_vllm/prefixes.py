"""vLLM's map from a prefix's hash to the block that holds it, over memory that may be gone.

vLLM forgets a prefix by taking its hash out of this map, a block at a time and in Python. Where the
many requests of a burst end together, thousands of prefixes pass the cap in one step, and the
device would wait for that. So memory goes back at once and the map is left as it is: a prefix
whose block is no longer its own is no hit, and leaves the map when it is asked for or, as any
prefix in vLLM, when its block is handed out again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.core.block_pool import BlockHashToBlockMap

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import BlockHashWithGroupId, KVCacheBlock

    from kvcached import _C


class Prefixes(BlockHashToBlockMap):  # type: ignore[misc]
    """vLLM's map, in which only those prefixes are found whose blocks still hold them."""

    kvcached_queue: _C.BlockQueue[KVCacheBlock]
    kvcached_forget: Callable[[KVCacheBlock], None]

    def get_one_block(self, key: BlockHashWithGroupId) -> KVCacheBlock | None:
        """Any block that holds the prefix with this hash."""
        block: KVCacheBlock | None
        while (block := super().get_one_block(key)) is not None:
            if self.kvcached_queue.holds(block):
                return block
            self.kvcached_forget(block)
        return None


def adopt(
    pool: BlockPool,
    queue: _C.BlockQueue[KVCacheBlock],
    forget: Callable[[KVCacheBlock], None],
) -> None:
    """Gives a block pool a map with the same prefixes that asks `queue` about each hit, and has
    `forget` take a block's prefix out of it."""
    made: Prefixes = object.__new__(Prefixes)
    # One state for both, as for the coordinator: whoever still has vLLM's sees the same.
    made.__dict__ = pool.cached_block_hash_to_block.__dict__
    made.kvcached_queue = queue
    made.kvcached_forget = forget
    # BlockPool has no setter; the attribute is where its own code looks.
    pool.cached_block_hash_to_block = made
