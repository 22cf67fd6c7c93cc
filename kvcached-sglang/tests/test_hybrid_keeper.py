"""Both caches of a hybrid model are looked after, each by what it has itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kvcached_sglang.agreement import Agreement
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


def test_a_prompt_demands_no_more_of_windows_than_its_next_batch(supply: PageSupply) -> None:
    engine = _engine(400)
    whole = _keeper(FullKeeper, "full", engine, supply)._needs()
    window = _keeper(WindowKeeper, "window", engine, supply)._needs()
    assert whole.prompts > 200
    assert window.prompts == window.prefill == whole.prefill
    assert whole.rest > 190
    assert window.rest <= window.prefill
