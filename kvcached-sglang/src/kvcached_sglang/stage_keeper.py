"""Looks after the memory of a scheduler that is one stage of a pipeline.

A decision is taken by offers that are some rounds old. It counts on what was offered as firm; more
is granted only where that covers the next batch and what the requests of the other microbatches
take meanwhile. So a batch that was formed finds its memory on every stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvcached_sglang.agreement import Agreement, Terms
from kvcached_sglang.keeper import RUNNING_BUDGET, STEP_BUDGET, MemoryKeeper
from kvcached_sglang.microbatches import is_idle, needs_of_stage, requests_of
from kvcached_sglang.pipeline import Offer

if TYPE_CHECKING:
    from kvcached_sglang.needs import Needs
    from kvcached_sglang.pipeline import StageRounds


class StageKeeper(MemoryKeeper):
    """Called by a stage's loop before it forms a microbatch."""

    def __init__(self, scheduler: Any, *args: Any, rounds: StageRounds, **kwargs: Any) -> None:
        """`args`, `kwargs`: those of MemoryKeeper."""
        super().__init__(scheduler, *args, **kwargs)
        self._rounds = rounds

    def _is_idle(self) -> bool:
        return is_idle(self._scheduler)

    def _is_stuck(self) -> bool:
        return requests_of(self._scheduler) == 0

    def _running_batches(self) -> list[Any]:
        return list(self._scheduler.running_mbs)

    def _needs(self) -> Needs:
        return needs_of_stage(self._scheduler, self._supply.page_size)

    def _fetch(self, needs: Needs) -> None:
        pool = self._supply.pool
        # The other microbatches come before this offer is answered.
        beside = requests_of(self._scheduler)
        pool.keep(needs.oldest)
        pool.demand(needs.prompts + needs.decode + beside)
        running = max(needs.decode + beside, needs.chunk)
        if running > pool.num_free:
            pool.ensure(running, RUNNING_BUDGET)
        if needs.next_batch + beside > pool.num_free:
            pool.ensure(needs.next_batch + beside, STEP_BUDGET)
        pool.expect(needs.ahead + beside)

    def _agree(self, needs: Needs, evict: int) -> Terms:
        beside = requests_of(self._scheduler)
        pressed = any(self._supply.pool.pressure)
        ahead = (needs.next_batch if pressed else needs.ahead) + beside

        def decide(worst: Offer | None) -> Terms:
            return self._decided(worst, needs, beside)

        return self._rounds.settle(self._offer(ahead, evict, pressed), decide)

    def _agree_idle(self, evict: int) -> Terms:
        def decide(worst: Offer | None) -> Terms:
            if worst is None:
                return Terms(self._supply.used, 0)
            return Terms(max(worst.most, self._supply.used), worst.evict)

        pressed = any(self._supply.pool.pressure)
        return self._rounds.settle(self._offer(0, evict, pressed), decide)

    def _offer(self, ahead: int, evict: int, pressed: bool) -> Offer:
        """What this rank can do. What it has beyond `ahead` pages and its slack is not firm, so
        that it can go."""
        supply, pool = self._supply, self._supply.pool
        extent = pool.blocks_per_extent
        there = pool.num_settled - 1
        most = min(supply.pages, there + pool.num_growable)
        slack = 0 if pressed else pool.slack_target * extent
        spare = max(0, there - supply.used - ahead - slack) // extent
        firm = there - min(spare, pool.empty_extents) * extent
        return Offer(min(firm, most), most, evict)

    def _decided(self, worst: Offer | None, needs: Needs, beside: int) -> Terms:
        """The first stage's decision."""
        supply = self._supply
        used = supply.used
        if worst is None:
            return Terms(used, 0)
        pages = worst.most
        if worst.firm < used + needs.next_batch + beside:
            pages = max(min(worst.firm, used + needs.decode), worst.firm - beside)
        # What has been taken since the offer was made has memory. Less than that would not be seen:
        # SGLang counts on all that it could evict beside what is available, which is never below 0.
        pages = max(pages, used)
        if needs.chunk == 0:
            return Terms(pages, worst.evict)
        # As with ranks: SGLang goes on with a prompt that is half in whatever it sees.
        lacking = max(0, used + needs.chunk - worst.firm)
        dropped = min(lacking, self._cached_tokens() // supply.page_size)
        pages = min(max(pages, used + needs.chunk - dropped), supply.pages)
        return Terms(pages, max(worst.evict, dropped * supply.page_size))

    def _over_cap(self) -> int:
        # All stages have the same prefixes, and the first one's decision is not late.
        return super()._over_cap() if self._rounds.is_first else 0

    def _balance(self, idle: bool) -> None:
        self._supply.pool.hold_at_least(self._rounds.promised + 1)  # and page 0
        super()._balance(idle)


def among_stages(ranks: int) -> Agreement:
    """In the place of an agreement among ranks that come to a turn at once: there is none, and yet
    all must count their turns alike."""
    return Agreement(None, ranks)
