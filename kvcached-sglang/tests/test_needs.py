"""How many pages a scheduler's next batch binds its engine to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvcached_sglang.needs import Needs, needs_of


def request(tokens: int, in_place: int = 0) -> Any:
    return SimpleNamespace(
        origin_input_ids=[0] * tokens, output_ids=[], get_fill_ids=lambda: [0] * in_place
    )


def scheduler(*waiting: int, **other: Any) -> Any:
    """One whose requests wait with so many tokens each, in batches of 100."""
    return SimpleNamespace(
        **{
            "running_batch": SimpleNamespace(reqs=[]),
            "last_batch": None,
            "waiting_queue": [request(tokens) for tokens in waiting],
            "grammar_manager": SimpleNamespace(grammar_queue=[]),
            "chunked_req": None,
            "chunked_prefill_size": 100,
            "max_prefill_tokens": 100,
            "is_mixed_chunk": False,
            **other,
        }
    )


def running(requests: int) -> SimpleNamespace:
    return SimpleNamespace(reqs=[request(10) for _ in range(requests)])


def test_memory_of_the_batch_after_the_next_is_wanted_while_the_device_works() -> None:
    def ahead(prompts: int, rest: int = 0) -> int:
        return Needs(3, 10, rest, prompts, half_in=0, chunk=0, oldest=0).ahead

    assert ahead(prompts=50) == 3 + 20
    assert ahead(prompts=14) == 3 + 14
    assert ahead(prompts=8) == 3 + 10
    assert ahead(prompts=50, rest=30) == 3 + 10 + 30


def test_prompts_that_fit_into_one_batch_leave_nothing_to_come() -> None:
    assert needs_of(scheduler(50, 40), 1).rest == 0
    assert needs_of(scheduler(50, 40), 1).prefill == 50 + 40 + 2 * 2


def test_a_prompt_that_will_be_cut_counts_whole() -> None:
    needs = needs_of(scheduler(350), 1)
    assert needs.prefill >= 100
    assert needs.next_batch == 350 + 2


@pytest.mark.parametrize(
    "waiting", [(60, 60, 800), (800, 60, 60), (60,) * 400 + (800,), (0,) * 400 + (800,)]
)
def test_whichever_prompt_is_cut_it_may_be_the_longest(waiting: tuple[int, ...]) -> None:
    # Hits make room for others in the batch, and SGLang may take its queue in another order.
    needs = needs_of(scheduler(*waiting), 1)
    assert needs.prefill >= 100
    assert needs.next_batch >= min(100 + 800, sum(waiting))


def test_a_prompt_whose_grammar_is_still_being_made_may_join_the_batch() -> None:
    late = SimpleNamespace(grammar_queue=[request(800)])
    assert needs_of(scheduler(grammar_manager=late), 1).next_batch >= 800


def test_pages_that_are_cut_short_count_whole() -> None:
    # SGLang rounds each up, so that the second has no room for its last page.
    needs = needs_of(scheduler(33, 65), 16)
    assert needs.rest > 0
    assert needs.next_batch >= 3 + 5


def test_without_chunks_the_longest_prompt_is_one_batch() -> None:
    for size in (None, -1):
        needs = needs_of(scheduler(60, 60, 800, chunked_prefill_size=size), 1)
        assert needs.rest == 0
        assert needs.prefill >= 800


def test_of_a_prompt_that_is_half_in_only_what_is_left_counts() -> None:
    needs = needs_of(scheduler(chunked_req=request(500, in_place=497)), 1)
    assert needs.half_in == needs.next_batch == 3 + 2


def test_a_prompt_that_is_half_in_and_fills_the_batch_keeps_others_out_of_it() -> None:
    needs = needs_of(scheduler(800, chunked_req=request(500, in_place=250)), 1)
    assert needs.half_in == 250 + 2
    assert needs.next_batch <= 250 + 2 + 2


def test_behind_the_last_chunk_of_a_prompt_the_next_one_may_be_cut() -> None:
    needs = needs_of(scheduler(800, chunked_req=request(500, in_place=450)), 1)
    assert needs.half_in == 50 + 2
    assert needs.next_batch >= 50 + 800


def test_requests_that_decode_beside_chunks_take_a_token_a_chunk() -> None:
    half_in = request(500, in_place=200)
    alone = needs_of(scheduler(chunked_req=half_in, running_batch=running(10)), 1)
    mixed = needs_of(
        scheduler(chunked_req=half_in, running_batch=running(10), is_mixed_chunk=True), 1
    )
    # 300 tokens in chunks of 90.
    assert mixed.half_in == alone.half_in + 10 * 4
    # In pages of 16 these are in the page that each has, or the next.
    paged = needs_of(
        scheduler(chunked_req=half_in, running_batch=running(10), is_mixed_chunk=True), 16
    )
    assert paged.half_in == 300 // 16 + 2 + 10


def test_a_prompt_that_has_just_come_in_is_the_oldest_where_nobody_runs() -> None:
    came_in = SimpleNamespace(reqs=[request(500)])
    assert needs_of(scheduler(last_batch=came_in), 1).oldest == 501
    assert needs_of(scheduler(last_batch=came_in, running_batch=running(2)), 1).oldest == 11


def test_a_prompt_that_is_half_in_is_the_oldest_where_nobody_runs() -> None:
    half_in = request(500, in_place=450)
    assert needs_of(scheduler(chunked_req=half_in), 1).oldest == 501
    assert needs_of(scheduler(chunked_req=half_in, running_batch=running(2)), 1).oldest == 11
