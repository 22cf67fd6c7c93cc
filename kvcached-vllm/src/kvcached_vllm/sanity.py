"""KVCACHED_SANITY_CHECK=true: every step is checked against the page table before it runs."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.kv_cache_interface import SlidingWindowSpec

from kvcached_vllm import engine
from kvcached_vllm.extent_layout import ids_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from kvcached import _C
    from kvcached_vllm.extent_layout import BlockIds

#: Blocks of one request, by KV cache group.
_Blocks = list["array[int]"]


class SanityError(RuntimeError):
    """What is wrong with a step or with the memory, in one line. The engine must stop."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"kvcached: sanity check: step {step}: {what}")


class StepCheck:
    """Knows which blocks each request of a worker has, and looks them up before every step.

    It follows vLLM's plans as vLLM's model runners do: the first plan with a request has all of its
    blocks, later ones have the new blocks, and where a request was preempted all of them again.
    """

    def __init__(self, pager: _C.Pager, row: _C.Row, config: KVCacheConfig) -> None:
        """`row` is that of the rank whose `pager` it is."""
        facts = row.describe()
        self._pager = pager
        self._row = row
        self._rank = facts["rank"]
        self._num_blocks = facts["num_blocks"]
        self._blocks_per_extent = facts["blocks_per_extent"]
        self._ids = ids_of(facts, config)
        self._groups = [_one_of(group.kv_cache_spec) for group in config.kv_cache_groups]
        self._requests: dict[str, _Blocks] = {}

    def check(self, plan: SchedulerOutput, step: int) -> None:
        """Raises SanityError for the first block of step `step` that has no memory on this rank, or
        where memory was written to after its release."""
        if violation := self._pager.violation:
            raise SanityError(step, f"rank {self._rank}: {violation}")
        computed = self._follow(plan, step)
        used = [
            (name, torch.frombuffer(blocks, dtype=torch.int32)[first:])
            for name, tokens in computed.items()
            for blocks, first in self._in_reach(self._requests[name], tokens)
            if first < len(blocks)
        ]
        if not used:
            return
        flags = torch.frombuffer(bytearray(self._row.committed()), dtype=torch.uint8).bool()
        committed = flags.repeat_interleave(self._blocks_per_extent)[: self._num_blocks]
        everything = self._ids.block_of(torch.cat([ids for _, ids in used]))
        in_range = (everything >= 0) & (everything < self._num_blocks)
        if in_range.all() and committed[everything].all():
            return
        for name, ids in used:
            for block_id in ids.tolist():
                self._judge(step, name, block_id)

    def _follow(self, plan: SchedulerOutput, step: int) -> dict[str, int]:
        """Takes a plan in; returns the requests that it computes and their tokens so far."""
        for name in (*plan.finished_req_ids, *engine.preempted(plan)):
            self._requests.pop(name, None)
        computed = {}
        for new in plan.scheduled_new_reqs:
            self._requests[new.req_id] = _arrays(new.block_ids)
            computed[new.req_id] = new.num_computed_tokens
        cached = plan.scheduled_cached_reqs
        resumed = engine.resumed(cached)
        for name, blocks, tokens in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            if name in resumed:
                self._requests[name] = _arrays(blocks or ())
            elif name not in self._requests:
                raise SanityError(
                    step, f"rank {self._rank}: request {name!r} goes on, and no plan began it"
                )
            elif blocks is not None:
                for have, more in zip(self._requests[name], blocks, strict=True):
                    have.extend(more)
            computed[name] = tokens
        return computed

    def _in_reach(self, blocks: _Blocks, tokens: int) -> Iterable[tuple[array[int], int]]:
        """Each group's blocks, and the first of them that attention still reads.

        What has left a window is freed, and no plan says so.
        """
        for have, spec in zip(blocks, self._groups, strict=False):
            yield have, _skipped_tokens(spec, tokens) // spec.block_size

    def _judge(self, step: int, name: str, block_id: int) -> None:
        who = f"request {name!r} uses block {block_id}"
        block = self._ids.block_of(block_id)
        if not 0 <= block < self._num_blocks:
            raise SanityError(
                step, f"rank {self._rank}: {who}, and there are {self._num_blocks} blocks"
            )
        extent = block // self._blocks_per_extent
        state = self._row.state(extent)
        if state == "committed":
            return
        if state == "releasing" and 0 < step <= self._row.fence(extent):
            # Freed since the step was planned, by an abort for instance, and its memory waits for
            # just that step.
            return
        raise SanityError(step, f"rank {self._rank}: {who} of extent {extent}, which is {state}")


def _arrays(groups: Sequence[list[int]]) -> _Blocks:
    return [array("i", blocks) for blocks in groups]


def _one_of(spec: Any) -> Any:
    """The specification of a group's layers, which see the same tokens."""
    parts = engine.parts_of(spec)
    return spec if parts is None else next(iter(parts.values()))


def _skipped_tokens(spec: Any, tokens: int) -> int:
    """How many of the first `tokens` nobody reads any more, as vLLM's managers compute it in
    get_num_skipped_tokens() (v1/core/single_type_kv_cache_manager.py)."""
    # A FullAttentionSpec may name a window or a chunk, too: its blocks are kept all the same.
    if type(spec) is SlidingWindowSpec:
        return max(0, tokens - int(spec.sliding_window) + 1)
    if type(spec).__name__ == "ChunkedLocalAttentionSpec":  # which 0.9 does not have
        chunk = int(spec.attention_chunk_size)
        return tokens // chunk * chunk
    if getattr(spec, "mamba_cache_mode", "none") == "align":
        return max(0, tokens - 1)  # the state after the last token is all that counts
    return 0


def check_owners(step: int, requests: Iterable[str], manager: Any, ids: BlockIds) -> None:
    """Raises SanityError where more of the running `requests` use a block than are counted as its
    users, so that it may be free, or somebody else's. `manager` is vLLM's KV cache manager."""
    users: Counter[int] = Counter()
    last: dict[int, str] = {}
    for name in requests:
        for group in manager.get_block_ids(name):
            users.update(group)
            last.update(dict.fromkeys(group, name))
    pool = manager.block_pool
    users.pop(pool.null_block.block_id, None)
    for block, count in users.items():
        owned = pool.blocks[ids.block_of(block)].ref_cnt
        if count > owned:
            raise SanityError(
                step,
                f"request {last[block]!r} uses block {block}, which {count} requests use and "
                f"{owned} own",
            )
