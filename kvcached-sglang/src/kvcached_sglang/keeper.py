"""Looks after one scheduler's memory between its batches.

SGLang's loop turns all the time, idle or not, so that everything happens on the scheduler's own
thread: what it decides with never changes while a batch is formed.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from kvcached_sglang.agreement import IDLE_TURNS, Agreement, Terms
from kvcached_sglang.needs import Needs, is_idle, needs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvcached.policy import PolicyRunner
    from kvcached.telemetry.reporter import EventReporter
    from kvcached_sglang.page_supply import PageSupply
    from kvcached_sglang.working_memory import WorkingMemory

_log = logging.getLogger("sglang.kvcached")

#: Longest wait for memory on behalf of requests that only wait, in seconds.
STEP_BUDGET = 0.005
#: Longest wait for requests that run, in seconds: giving up would retract one of them.
RUNNING_BUDGET = 1.0
#: How long an engine without requests keeps its memory for the next one, in seconds.
GRACE = 0.3
#: Between looks of an idle engine, in seconds.
_IDLE_LOOK = 0.005
#: Between two questions to a policy that a package provides, in seconds.
_POLICY = 0.05
#: How long requests wait for memory before a line says so, and between such lines, in seconds.
_STARVED_LOG_INTERVAL = 10.0


class MemoryKeeper:
    """Called by the scheduler's loop before it forms a batch."""

    def __init__(
        self,
        scheduler: Any,
        supply: PageSupply,
        agreement: Agreement,
        evict: Callable[[Any, int], None],
        max_cached_tokens: int,
        reporter: EventReporter | None = None,
        policy: PolicyRunner | None = None,
        working: WorkingMemory | None = None,
    ) -> None:
        """`evict`: drops so many tokens of a prefix cache. `max_cached_tokens`: -1 for no cap.
        `policy`: who sets entitlements in place of the ledger's own policy. `working`: None where
        a batch needs no memory that anybody accounts for."""
        self._scheduler = scheduler
        self._supply = supply
        self._agreement = agreement
        self._evict = evict
        self._cap = max_cached_tokens
        self._reporter = reporter
        self._policy = policy
        self._working = working
        self._idle_since: float | None = None
        self._idle_turns = 0
        self._next_look = 0.0
        self._next_policy = 0.0
        self._short_since: float | None = None
        self._starved_logged = 0.0

    def before_batch(self) -> None:
        """One turn of the loop."""
        if self._is_idle():
            self._turn_idle()
        else:
            self._idle_since = None
            if self._working is not None:
                self._working.hold()
            self._turn_busy()
        if self._reporter is not None:
            self._reporter.look()
        now = time.monotonic()
        if self._policy is not None and now >= self._next_policy:
            self._next_policy = now + _POLICY
            self._policy.apply()

    def _is_idle(self) -> bool:
        return is_idle(self._scheduler)

    def _needs(self) -> Needs:
        return needs_of(self._scheduler, self._supply.page_size)

    def _turn_busy(self) -> None:
        supply = self._supply
        needs = self._needs()
        supply.settle()
        supply.retry()
        evict = max(self._over_cap(), self._owed())
        # SGLang goes on with a prompt that is half in whatever it sees.
        supply.pool.promise(needs.half_in)
        # Before memory is fetched and offered: it must still be there when the batch takes it.
        self._balance(idle=False)
        self._fetch(needs)
        terms = self._agree(needs, evict)
        supply.grant(terms.pages)
        self._drop(terms.evict)
        self._tell_if_starved(needs)

    def _agree(self, needs: Needs, evict: int) -> Terms:
        """The terms of the next batch, where this rank has `evict` tokens to drop."""
        return self._agreement.settle(self._own_terms(needs, evict))

    def _own_terms(self, needs: Needs, evict: int) -> Terms:
        """What this rank could do by itself."""
        return Terms(min(self._supply.offer(needs.next_batch), self._supply.pages), evict)

    def _agree_idle(self, evict: int) -> Terms:
        """The same while there is no batch to come."""
        return self._agreement.settle(Terms(self._supply.offer(0), evict))

    def _fetch(self, needs: Needs) -> None:
        pool = self._supply.pool
        pool.keep(needs.oldest)
        pool.demand(needs.prompts + needs.decode)
        if needs.decode > pool.num_free:
            pool.ensure(needs.decode, RUNNING_BUDGET)
        if needs.next_batch > pool.num_free:
            pool.ensure(needs.next_batch, STEP_BUDGET)
        pool.expect(needs.ahead)

    def _turn_idle(self) -> None:
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
            self._idle_turns = 0
        if self._agreement.ranks == 1:
            if now < self._next_look:
                return
        elif self._idle_turns % IDLE_TURNS != 0 and not self._sleeps():
            # By turns, which all ranks count alike, and not by anybody's clock.
            self._idle_turns += 1
            return
        self._idle_turns += 1
        self._next_look = now + _IDLE_LOOK
        self._look_idle(settled=now - self._idle_since >= GRACE)

    def _sleeps(self) -> bool:
        # By the arguments, which all ranks have alike: the first rank alone has an idle sleeper.
        return bool(getattr(self._scheduler.server_args, "sleep_on_idle", False))

    def _look_idle(self, settled: bool) -> None:
        supply = self._supply
        pool = supply.pool
        supply.settle()
        supply.retry()
        ordered = pool.has_orders  # before the answer: a later order is not taken for done
        evict = max(self._over_cap(), self._owed())
        if settled:
            evict = max(evict, self._scattered())
            if self._working is not None:
                self._working.give_back()
        pool.promise(0)
        terms = self._agree_idle(evict)
        supply.grant(terms.pages)
        self._drop(terms.evict)
        if settled or ordered or pool.in_flight or any(pool.pressure):
            self._balance(idle=settled)
        if ordered and not pool.in_flight:
            pool.orders_done()

    def _cached_tokens(self) -> int:
        size: int = self._scheduler.tree_cache.evictable_size()
        return size

    def _over_cap(self) -> int:
        return max(0, self._cached_tokens() - self._cap) if self._cap >= 0 else 0

    def _owed(self) -> int:
        """Tokens to drop because the ledger asks for memory. Slack goes first, and costs nobody a
        prefix; what dropping them frees is seen at the next turn."""
        pool = self._supply.pool
        soft, hard = pool.pressure
        missing = soft + hard - pool.empty_extents - pool.releasing_extents
        if missing <= 0:
            return 0
        return min(missing * self._extent_tokens(), self._cached_tokens())

    def _scattered(self) -> int:
        """Tokens to drop because the cap's worth of prefixes lies in more extents than it fills.

        Only while nobody runs: all extents that are not empty are the cache's then.
        """
        cached = self._cached_tokens()
        if self._cap < 0 or cached == 0:
            return 0
        pool = self._supply.pool
        # The extent of page 0 is always there.
        held = pool.usable_extents - pool.empty_extents - 1
        allowed = -(-self._cap // self._extent_tokens())
        if held <= allowed or pool.in_flight:
            return 0
        # The tree drops what was used longest ago, wherever it lies: some at a time, and look.
        return max(1, min(cached, max(cached // 8, self._extent_tokens() // 4)))

    def _extent_tokens(self) -> int:
        return self._supply.pool.blocks_per_extent * self._supply.page_size

    def _drop(self, tokens: int) -> None:
        if tokens > 0:
            self._evict(self._scheduler.tree_cache, tokens)

    def _balance(self, idle: bool) -> None:
        pool = self._supply.pool
        pool.regard_as_cached(self._cached_tokens() // self._supply.page_size)
        pool.balance(idle)

    def _is_stuck(self) -> bool:
        return not self._scheduler.running_batch.reqs and self._scheduler.last_batch is None

    def _tell_if_starved(self, needs: Needs) -> None:
        pool = self._supply.pool
        # Nobody runs, nobody is about to, and yet somebody waits.
        if not self._is_stuck() and not (pool.denied and needs.next_batch > pool.num_free):
            self._short_since = None
            return
        now = time.monotonic()
        if self._short_since is None:
            self._short_since = now
        # A turn without a batch is nothing; requests also wait for other things than memory.
        if now - max(self._short_since, self._starved_logged) > _STARVED_LOG_INTERVAL:
            self._starved_logged = now
            _log.warning(
                "kvcached: requests wait for memory: %d tokens committed, %d available; the "
                "device, its other engines or the limit give no more",
                (pool.num_usable - 1) * self._supply.page_size,
                self._supply.available_tokens,
            )
