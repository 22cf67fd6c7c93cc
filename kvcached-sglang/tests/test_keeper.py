"""What happens between an engine's batches."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import PAGES_PER_EXTENT
from kvcached_sglang import keeper
from kvcached_sglang.agreement import Agreement, Terms
from kvcached_sglang.keeper import MemoryKeeper
from kvcached_sglang.page_supply import PageSupply


class Tree:
    """A prefix cache whose every page can be dropped, oldest first."""

    def __init__(self, supply: PageSupply) -> None:
        self.supply = supply
        self.pages: list[Any] = []
        self.dropped = 0

    def keep(self, pages: int) -> None:
        ids = self.supply.take(pages)
        assert ids is not None
        self.pages += list(ids.split(1))

    def evictable_size(self) -> int:
        return len(self.pages) * self.supply.page_size

    def evict(self, tokens: int) -> None:
        for _ in range(min(len(self.pages), -(-tokens // self.supply.page_size))):
            self.dropped += self.supply.page_size
            self.supply.give(self.pages.pop(0))


class Engine(SimpleNamespace):
    """A scheduler as the keeper sees it."""

    def __init__(self, supply: PageSupply) -> None:
        super().__init__(
            running_batch=SimpleNamespace(reqs=[], batch_is_full=False),
            last_batch=None,
            waiting_queue=[],
            chunked_req=None,
            chunked_prefill_size=None,
            max_prefill_tokens=1000,
            is_mixed_chunk=False,
            grammar_manager=SimpleNamespace(grammar_queue=[]),
            server_args=SimpleNamespace(sleep_on_idle=False),
            tree_cache=Tree(supply),
        )

    def wait(self, tokens: int) -> None:
        self.waiting_queue.append(SimpleNamespace(origin_input_ids=[0] * tokens, output_ids=[]))

    def have_half_in(self, tokens: int, in_place: int) -> None:
        self.chunked_req = SimpleNamespace(
            origin_input_ids=[0] * tokens, output_ids=[], get_fill_ids=lambda: [0] * in_place
        )


MakeKeeper = Callable[..., MemoryKeeper]


@pytest.fixture
def engine(supply: PageSupply) -> Engine:
    return Engine(supply)


@pytest.fixture
def make(engine: Engine, supply: PageSupply) -> MakeKeeper:
    def made(cap: int = -1, agreement: Agreement | None = None) -> MemoryKeeper:
        evict = lambda tree, tokens: tree.evict(tokens)  # noqa: E731
        return MemoryKeeper(engine, supply, agreement or Agreement(None, 1), evict, cap)

    return made


def settle(kept: MemoryKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns until an idle engine has given back what it will."""
    monkeypatch.setattr(keeper, "GRACE", 0.0)
    monkeypatch.setattr(keeper, "_IDLE_LOOK", 0.0)
    for _ in range(100):
        kept.before_batch()
        kept._supply.pool.wait(0.02)


def test_a_batch_finds_the_memory_it_needs(
    make: MakeKeeper, engine: Engine, supply: PageSupply
) -> None:
    engine.wait(40)
    make().before_batch()
    assert supply.pool.num_free >= 20


def test_prefixes_above_the_cap_are_dropped_while_requests_run(
    make: MakeKeeper, engine: Engine
) -> None:
    engine.tree_cache.keep(20)
    engine.wait(4)
    make(cap=10).before_batch()
    assert engine.tree_cache.evictable_size() == 10


def test_no_cap_keeps_all_prefixes(make: MakeKeeper, engine: Engine) -> None:
    engine.tree_cache.keep(20)
    engine.wait(4)
    make(cap=-1).before_batch()
    assert engine.tree_cache.dropped == 0


def test_an_idle_engine_keeps_page_0_its_slack_and_the_caps_worth_of_extents(
    make: MakeKeeper, engine: Engine, supply: PageSupply, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = engine.tree_cache
    tree.keep(48)
    # Every other page goes, so that what is left lies in all extents.
    for ids in tree.pages[::2]:
        supply.give(ids)
    tree.pages = tree.pages[1::2]
    cap = 2 * PAGES_PER_EXTENT * supply.page_size
    settle(make(cap=cap), monkeypatch)
    assert supply.pool.usable_extents <= 1 + supply.pool.slack_target + 2
    assert 0 < tree.evictable_size() <= cap


def test_the_ranks_take_the_smallest_offer_and_the_largest_eviction(
    make: MakeKeeper, engine: Engine, supply: PageSupply
) -> None:
    class Narrow(Agreement):
        def settle(self, own: Terms) -> Terms:
            return Terms(min(own.pages, 7), max(own.evict, 6))

    engine.tree_cache.keep(5)
    engine.wait(4)
    make(agreement=Narrow(None, 2)).before_batch()
    assert engine.tree_cache.dropped == 6
    assert supply.available_tokens == (7 - 2) * supply.page_size


def idle_meetings(make: MakeKeeper, turns: int) -> list[int]:
    """The turns at which one of two idle ranks meets the other."""
    met: list[int] = []
    turn = 0

    class Noting(Agreement):
        def settle(self, own: Terms) -> Terms:
            met.append(turn)
            return own

    kept = make(agreement=Noting(None, 2))
    while turn < turns:
        kept.before_batch()
        turn += 1
    return met


def test_idle_ranks_meet_at_the_same_turns_whatever_their_clocks_say(make: MakeKeeper) -> None:
    assert idle_meetings(make, 200) == [0, 64, 128, 192]


@pytest.mark.parametrize("sleeper", [None, object()])
def test_ranks_that_sleep_meet_at_every_turn_though_only_the_first_has_a_sleeper(
    make: MakeKeeper, engine: Engine, sleeper: object
) -> None:
    engine.server_args.sleep_on_idle = True
    engine.idle_sleeper = sleeper
    assert idle_meetings(make, 5) == [0, 1, 2, 3, 4]


class _Denied:
    """A pool that is given no more memory, though it could be."""

    num_growable = 20

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.promised: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def ensure(self, pages: int, seconds: float) -> bool:
        return bool(self._pool.num_free >= pages)

    def expect(self, pages: int) -> None:
        pass

    def promise(self, pages: int) -> None:
        self.promised.append(pages)


@pytest.fixture
def denied(supply: PageSupply, monkeypatch: pytest.MonkeyPatch) -> _Denied:
    pool = _Denied(supply.pool)
    monkeypatch.setattr(supply, "pool", pool)
    return pool


@pytest.mark.parametrize(("tokens", "there"), [(30, False), (5, True)])
def test_what_could_be_granted_is_shown_only_where_a_prompt_has_memory_for_all_its_chunks(
    make: MakeKeeper,
    engine: Engine,
    supply: PageSupply,
    denied: _Denied,
    tokens: int,
    there: bool,
) -> None:
    assert denied._pool.ensure(12, 1.0)
    engine.chunked_prefill_size = 8
    engine.wait(tokens * supply.page_size)
    make().before_batch()
    shown = supply.available_tokens // supply.page_size
    assert shown == supply.free_pages + (denied.num_growable if there else 0)


def test_the_rest_of_a_prompt_that_is_half_in_is_promised_to_it_until_it_is_in(
    make: MakeKeeper, engine: Engine, supply: PageSupply, denied: _Denied
) -> None:
    kept = make()
    engine.chunked_prefill_size = 8
    engine.have_half_in(tokens=100 * supply.page_size, in_place=60 * supply.page_size)
    kept.before_batch()
    engine.have_half_in(tokens=100 * supply.page_size, in_place=92 * supply.page_size)
    kept.before_batch()
    engine.chunked_req = None
    engine.wait(4)
    kept.before_batch()
    assert denied.promised == [40 + 2, 8 + 2, 0]


@pytest.mark.parametrize(("pages", "stays"), [(9, True), (10, True), (11, False)])
def test_a_batch_that_sglang_took_for_full_is_open_again_when_more_is_granted(
    make: MakeKeeper, engine: Engine, pages: int, stays: bool
) -> None:
    kept = make()
    kept._grant(10)
    engine.running_batch.batch_is_full = True
    kept._grant(pages)
    assert engine.running_batch.batch_is_full == stays


def test_nothing_stays_promised_to_a_prompt_that_was_given_up(
    make: MakeKeeper, engine: Engine, denied: _Denied
) -> None:
    kept = make()
    engine.chunked_prefill_size = 8
    engine.have_half_in(tokens=100, in_place=60)
    kept.before_batch()
    engine.chunked_req = None
    kept.before_batch()
    assert denied.promised[-1] == 0


class _Working:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def hold(self) -> None:
        self.calls.append("hold")

    def give_back(self) -> None:
        self.calls.append("give back")


def test_working_memory_is_held_for_batches_and_given_back_when_idle(
    supply: PageSupply, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(keeper.time, "monotonic", lambda: now[0])
    engine, working = Engine(supply), _Working()
    kept: Any = working
    tended = MemoryKeeper(engine, supply, Agreement(None, 1), lambda *_: None, -1, None, None, kept)
    engine.wait(4)
    tended.before_batch()
    engine.waiting_queue.clear()
    tended.before_batch()
    assert working.calls == ["hold"], "it was given back before the grace was over"
    now[0] += keeper.GRACE + keeper._IDLE_LOOK
    tended.before_batch()
    assert working.calls == ["hold", "give back"]
