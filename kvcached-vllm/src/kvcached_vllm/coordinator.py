"""vLLM's KV cache coordinator, which learns here what memory could still be had.

vLLM asks its coordinator how many blocks a request needs, and compares the answer with the free
count, in two places: an admission gate (will the whole prompt ever fit?) and the real check
before it takes blocks. The free count is what is committed. The gate may also count what can
still be granted; the real check may not, so memory is fetched there before the answer is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kvcached_vllm import engine

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator


#: More blocks than any cache has.
_MORE_THAN_ANY = 1 << 40


class Supplier(Protocol):
    """Who answers for memory; see kvcached_vllm.supply.BlockSupply."""

    def promise(self, need: int) -> int:
        """The need to compare with the committed free count, at the admission gate."""

    def provide(self, need: int, request_id: str, hits: Any) -> int:
        """The same at the real check, after trying to commit what is missing."""


class _Elastic:
    """Mixed into the coordinator's own class."""

    kvcached: Supplier

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Any,
        *args: Any,
        **kwargs: Any,
    ) -> int:
        """vLLM's answer, less what need not be committed yet.

        vLLM says by `apply_admission_cap` that the admission gate asks, which came with 0.20.
        """
        need: int = super().get_num_blocks_to_allocate(  # type: ignore[misc]
            request_id,
            num_tokens,
            new_computed_blocks,
            *args,
            **kwargs,
        )
        if need <= 0 or need > _MORE_THAN_ANY:
            # Nearly every request of nearly every step: its last block has room. Or it is not to
            # be admitted yet, whatever there is.
            return need
        if kwargs.get("apply_admission_cap"):
            return self.kvcached.promise(need)
        return self.kvcached.provide(need, request_id, new_computed_blocks)


class _LaterStates:
    """Mixed in between, for caches with Mamba states, of which vLLM may say that they can be used a
    step later only.

    It says so by a need of one block more than there are (0.32
    v1/core/single_type_kv_cache_manager.py, MambaManager.get_num_blocks_to_allocate). More blocks
    may come here at any time, so it is asked with a count that no need reaches.
    """

    block_pool: Any

    def get_num_blocks_to_allocate(self, *args: Any, **kwargs: Any) -> int:
        """vLLM's answer; more than any cache has where a state is to be used later."""
        pool = self.block_pool
        there = pool.num_gpu_blocks
        pool.num_gpu_blocks = _MORE_THAN_ANY
        try:
            need: int = super().get_num_blocks_to_allocate(*args, **kwargs)  # type: ignore[misc]
        finally:
            pool.num_gpu_blocks = there
        return need


class Coordinators(NamedTuple):
    """Both, over the same state."""

    vanilla: KVCacheCoordinator
    """For a step whose memory is there: it asks nobody."""
    elastic: KVCacheCoordinator


def elastic_coordinator(vanilla: KVCacheCoordinator, supply: Supplier) -> KVCacheCoordinator:
    """An elastic coordinator with the state of a vanilla one.

    The two share one dictionary of attributes, so that whoever still holds the vanilla object
    sees the same state.
    """
    base = type(vanilla)
    between = (_LaterStates,) if engine.has_states(vanilla.kv_cache_config) else ()
    made: Any = object.__new__(type(f"Elastic{base.__name__}", (_Elastic, *between, base), {}))
    made.__dict__ = vanilla.__dict__
    made.kvcached = supply
    return made
