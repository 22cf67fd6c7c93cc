"""vLLM's KV cache coordinator, which learns here what memory could still be had.

vLLM asks its coordinator how many blocks a request needs, and compares the answer with the free
count, in two places: an admission gate (will the whole prompt ever fit?) and the real check
before it takes blocks. The free count is what is committed. The gate may also count what can
still be granted; the real check may not, so memory is fetched there before the answer is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator


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
        if need <= 0:
            # Nearly every request of nearly every step: its last block has room.
            return need
        if kwargs.get("apply_admission_cap"):
            return self.kvcached.promise(need)
        return self.kvcached.provide(need, request_id, new_computed_blocks)


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
    made: Any = object.__new__(type(f"Elastic{base.__name__}", (_Elastic, base), {}))
    made.__dict__ = vanilla.__dict__
    made.kvcached = supply
    return made
