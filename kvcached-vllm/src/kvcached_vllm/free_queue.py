"""The free queue that vLLM's block pool is given: the pool's own, or one that sorts what vLLM does
not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvcached import _C
from kvcached_vllm import engine

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import KVCacheBlock


class SortingQueue(_C.BlockQueue):  # type: ignore[type-arg]
    """For a vLLM that appends every block it frees.

    A pool takes what is appended for a cached prefix, which it keeps for long, and what is
    prepended for empty. Here a block's hash tells, which a block with a prefix has until the prefix
    is dropped.
    """

    def append(self, block: KVCacheBlock) -> None:
        """A freed block."""
        self.append_n([block])

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        """Freed blocks, the first to go first."""
        self.prepend_n([block for block in blocks if block.block_hash is None])
        super().append_n([block for block in blocks if block.block_hash is not None])


def free_queue(pool: _C.Pool, blocks: list[Any], layers: int) -> _C.BlockQueue[Any]:
    """A queue over vLLM's `blocks`, whose ids are those of so many `layers` (see
    kvcached_vllm.extent_layout)."""
    kind = _C.BlockQueue if engine.sorts_freed_blocks() else SortingQueue
    return kind(pool, blocks, layers)
