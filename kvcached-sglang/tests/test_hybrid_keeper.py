"""Both caches of a hybrid model are looked after, each by what it has itself."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kvcached_sglang.agreement import Agreement, Terms
from kvcached_sglang.hybrid_keeper import FullKeeper, HybridKeeper, WindowKeeper
from kvcached_sglang.page_supply import PageSupply


class Tree:
    """A prefix cache with more tokens in one part than in the other."""

    def __init__(self) -> None:
        self.dropped: list[tuple[str, int]] = []

    def full_evictable_size(self) -> int:
        return 50

    def swa_evictable_size(self) -> int:
        return 30


def _engine(prompt: int) -> Any:
    return SimpleNamespace(
        running_batch=SimpleNamespace(reqs=[]),
        last_batch=None,
        waiting_queue=[SimpleNamespace(origin_input_ids=[0] * prompt, output_ids=[])],
        chunked_req=None,
        chunked_prefill_size=8,
        max_prefill_tokens=1000,
        is_mixed_chunk=False,
        sliding_window_size=20,
        grammar_manager=SimpleNamespace(grammar_queue=[]),
        server_args=SimpleNamespace(sleep_on_idle=False),
        tree_cache=Tree(),
    )


def _keeper(kind: Any, name: str, engine: Any, supply: PageSupply, cap: int = -1) -> Any:
    def evict(tree: Tree, tokens: int) -> None:
        tree.dropped.append((name, tokens))

    return kind(engine, supply, Agreement(None, 1), evict, cap)


def test_each_part_is_kept_below_the_cap_by_what_it_has(supply: PageSupply) -> None:
    engine = _engine(4)
    full = _keeper(FullKeeper, "full", engine, supply, cap=20)
    window = _keeper(WindowKeeper, "window", engine, supply, cap=20)
    HybridKeeper(full, window).before_batch()
    assert engine.tree_cache.dropped == [("full", 30), ("window", 10)]


def test_a_prompt_needs_a_window_and_two_chunks_of_windows_however_long_it_is(
    supply: PageSupply,
) -> None:
    for prompt in (400, 4000):
        engine = _engine(prompt)
        whole = _keeper(FullKeeper, "full", engine, supply)._needs()
        window = _keeper(WindowKeeper, "window", engine, supply)._needs()
        assert whole.rest > prompt // 2 - 10
        assert window.prefill == whole.prefill
        assert window.rest == window.prompts == (20 + 2 * 8) // 2 + 3


@pytest.mark.parametrize(
    ("in_place", "promised"),
    [(8, (20 + 2 * 8 - 8) // 2 + 3), (16, (20 + 2 * 8 - 16) // 2 + 3), (200, 8 // 2 + 2), (394, 5)],
)
def test_what_is_promised_of_windows_falls_to_a_chunk_as_the_window_fills(
    supply: PageSupply, in_place: int, promised: int
) -> None:
    engine = _engine(400)
    (engine.chunked_req,) = engine.waiting_queue
    engine.chunked_req.get_fill_ids = lambda: [0] * in_place
    engine.waiting_queue = []
    window = _keeper(WindowKeeper, "window", engine, supply)._needs()
    assert window.half_in == promised
    assert window.next_batch == promised


def test_no_prompt_is_begun_whose_windows_have_no_memory(supply: PageSupply) -> None:
    engine = _engine(400)
    keeper = _keeper(WindowKeeper, "window", engine, supply)
    supply.take(20)  # of which the tree has 15
    needs = keeper._needs()
    assert supply.pool.ensure(needs.next_batch, 5.0)
    assert keeper._own_terms(needs, 0).pages >= supply.used + needs.next_batch
    short = replace(needs, decode=1, rest=supply.free_pages + 15)
    # Prefixes go as well, on which SGLang counts.
    assert keeper._own_terms(short, 0) == Terms(5 + 1, 30)
