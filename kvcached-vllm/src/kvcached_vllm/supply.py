"""Blocks for one scheduler: the pool behind vLLM's block pool."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm.v1.request import RequestStatus

from kvcached_vllm import engine
from kvcached_vllm.free_queue import free_queue

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.request import Request

    from kvcached import _C
    from kvcached_vllm.extent_layout import BlockIds

#: Longest wait of a whole scheduling step for memory on behalf of requests that only wait, in
#: seconds: they lose nothing by waiting one step more, and those that run lose the wait.
STEP_BUDGET = 0.0015
#: Longest wait for a request that runs, in seconds. The pager answers every request within one
#: driver call; giving up before its answer would preempt, which costs a whole prefill.
RUNNING_BUDGET = 1.0
#: More blocks than a pool can have.
_ALL = 2**32 - 1


class BlockSupply:
    """Puts a pool under a vLLM block pool and answers its coordinator.

    One thread at a time: under the scheduler's ``memory_lock``.
    """

    def __init__(
        self,
        pool: _C.Pool,
        block_pool: BlockPool,
        requests: dict[str, Request],
        watermark_blocks: int,
        max_cached_blocks: int | None,
        ids: BlockIds | None = None,
    ) -> None:
        """`max_cached_blocks`: how many prefix blocks to keep once free; None for all. `ids`: what
        the engine is to know its blocks by; None for their numbers."""
        self.pool = pool
        if ids is not None and ids.layers > 1:
            # Before anybody has heard of a block, the null block aside, whose id stays 0.
            for number, block in enumerate(block_pool.blocks):
                block.block_id = ids.id_of(number)
        self.queue = free_queue(pool, block_pool.blocks, 1 if ids is None else ids.layers)
        self._block_pool = block_pool
        self._ids = ids
        self._requests = requests
        self._watermark = watermark_blocks
        self._most_cached = _ALL if max_cached_blocks is None else max_cached_blocks
        self._step = 0
        self._left = 0
        self._deadline = 0.0
        self._linger = engine.may_forget_late(block_pool)
        self._prefixes: Any = None
        self.short = False
        """Whether this step had to turn somebody away for want of memory."""
        self._adopt_queue()

    def _adopt_queue(self) -> None:
        free = {block.block_id for block in self._block_pool.free_block_queue.get_all_free_blocks()}
        for block in self._block_pool.blocks:
            if block.block_id not in free:
                # The null block, and what a manager set aside: all in the pinned extents.
                self.queue.remove(block)
        # BlockPool has no setter; the attribute is where its own code looks.
        self._block_pool.free_block_queue = self.queue
        self._adopt_prefixes()
        self._settle()

    def _adopt_prefixes(self) -> None:
        if self._linger:
            from kvcached_vllm import prefixes

            pool, ids = self._block_pool, self._ids

            def forget(block: KVCacheBlock) -> None:
                number = block.block_id if ids is None else ids.block_of(block.block_id)
                engine.evict(pool, [number])

            prefixes.adopt(pool, self.queue, forget)
            self._prefixes = pool.cached_block_hash_to_block

    def _settle(self) -> None:
        # vLLM derives what is used from this number less the free count.
        self._block_pool.num_gpu_blocks = self.pool.num_settled

    @property
    def step(self) -> int:
        """The number of the current scheduling step."""
        return self._step

    def begin_step(self, to_admit: int = 0, oldest: int = 0) -> int:
        """Starts a step that may admit `to_admit` blocks, with `oldest` blocks in the hands of the
        oldest running request; returns its number."""
        self._step += 1
        self.short = False
        self._left = 0
        self.pool.keep(oldest)
        self._deadline = time.monotonic() + STEP_BUDGET
        self.pool.begin_step(self._step)
        if to_admit:
            self.pool.expect(to_admit)
        return self._step

    def end_step(self, ahead: int = 0, refill: int = 0, prompts: int = 0) -> None:
        """Orders the `ahead` blocks that the next steps will need, while the device works on
        this one (where some are missing, `refill` in all), and gives back what nobody needs.
        `prompts`: blocks that the requests at hand still take, however many steps that takes."""
        if self.pool.end_step(ahead, refill, prompts, self._most_cached):
            self.tidy(idle=False)
        else:
            self._settle()

    def finish_step(self, step: int, steps_follow: bool = False) -> None:
        """Takes in that a step's output is back. Unless `steps_follow`, whose ends give back what
        nobody needs, that goes now."""
        self.pool.processed(step)
        if not steps_follow:
            self.tidy(idle=False)

    def tidy(self, idle: bool) -> None:
        """Evicts prefixes above the cap, releases empty extents beyond the slack and answers who
        is entitled to more. An `idle` engine keeps the smallest slack."""
        if blocks := self.pool.coldest(self._most_cached):
            self._drop(blocks)
        self._balance(idle)

    def _balance(self, idle: bool) -> None:
        self.pool.balance(idle)
        if owed := self.pool.owed():
            self._drop(owed)
            self.pool.balance(idle)
        self._settle()

    def _drop(self, blocks: list[int]) -> None:
        if not self._linger:
            engine.evict(self._block_pool, blocks)
        elif self._block_pool.cached_block_hash_to_block is not self._prefixes:
            # Begun anew by a reset that vLLM did not report: up to 0.23 it answers no where there
            # is no connector to be reset, too.
            self._adopt_prefixes()
        self.queue.forget(blocks)

    def forget_prefixes(self) -> None:
        """Follows vLLM, which has dropped every prefix."""
        self._drop(self.pool.coldest(0))

    def leave(self, blocks: int) -> None:
        """Tells how many blocks whoever asks next has to leave to others, beside what it takes."""
        self._left = blocks

    def promise(self, need: int) -> int:
        """See coordinator.Supplier."""
        if self.pool.denied_recently:
            # What could still be granted is a guess now, and a request admitted on a wrong one
            # is preempted after its prefill. Only what is really there counts.
            self._fetch(need, self._deadline - time.monotonic())
            self.short |= need > self.pool.num_free
            return need
        growable = self.pool.num_growable
        if need > self.pool.num_free + growable:
            # It stays in the queue, and neighbours that owe us hear what it waits for.
            self.pool.ask(need)
            self.short = True
        return need - growable

    def provide(self, need: int, request_id: str, hits: Any) -> int:
        """See coordinator.Supplier."""
        if need > self.pool.num_unhashed:
            # Prefix hits that are free now are part of the need, but cost no new block.
            revived = sum(block.ref_cnt == 0 for group in hits for block in group)
            self._fetch(need - revived, self._patience(request_id))
            self.short |= need > self.pool.num_free
        left, self._left = self._left, 0
        # What others will take need not be committed yet, only grantable; nor need headroom.
        need += max(0, left - self.pool.num_growable)
        if self._watermark and need <= self.pool.num_free:
            return need - min(self._watermark, self.pool.num_growable)
        return need

    def _patience(self, request_id: str) -> float:
        request = self._requests.get(request_id)
        if request is not None and request.status is RequestStatus.RUNNING:
            return RUNNING_BUDGET
        return self._deadline - time.monotonic()

    def _fetch(self, blocks: int, seconds: float) -> None:
        if blocks > self.pool.num_unhashed:
            self.pool.ensure(blocks, max(0.0, seconds))
            self._settle()

    def pause(self) -> None:
        """Waits a moment for memory, so that a starved engine does not spin."""
        self.pool.wait_for_memory(STEP_BUDGET)

    @property
    def usage(self) -> float:
        """The used share of what is committed or could be, from 0 to 1. Without the null block,
        as vLLM counts."""
        used = self.pool.num_used - 1
        total = self.pool.num_usable - 1 + self.pool.num_growable
        return used / total if total > 0 else 0.0
