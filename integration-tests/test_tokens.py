"""An elastic engine answers as a vanilla one does, whatever is asked of it."""

from __future__ import annotations

import pytest

import elasticity
from comparison import assert_same
from conftest import ROOMY, Pair
from engine import Outcome

NAMES = [scenario.name for scenario in ROOMY]


def test_mixed_requests_get_the_same_tokens(roomy: Pair) -> None:
    vanilla, elastic = (side.result("mixed_lengths") for side in (roomy.vanilla, roomy.elastic))
    assert_same(vanilla["tokens"], elastic["tokens"])


def test_answers_wander_so_that_equal_tokens_mean_something(roomy_vanilla: Outcome) -> None:
    tokens = roomy_vanilla.result("mixed_lengths")["tokens"]
    for answer in (answer for answer in tokens if len(answer) >= 50):
        assert len(set(answer)) > len(answer) / 3


def test_shared_prefixes_get_the_same_tokens(roomy: Pair) -> None:
    vanilla, elastic = (side.result("shared_prefixes") for side in (roomy.vanilla, roomy.elastic))
    assert_same(vanilla["tokens"], elastic["tokens"])


def test_shared_prefixes_are_found_in_both_waves(roomy: Pair) -> None:
    for side in (roomy.vanilla, roomy.elastic):
        first, second = side.result("shared_prefixes")["cached_tokens"]
        assert first > 0, "requests side by side did not share their prefix"
        # 20 requests over prefixes of 320 tokens, which the first wave left in the cache.
        assert second == 20 * 320


def test_a_prompt_read_in_chunks_gets_the_same_tokens(roomy: Pair) -> None:
    results = [side.result("long_prompt_in_chunks") for side in (roomy.vanilla, roomy.elastic)]
    for result in results:
        assert result["steps_to_first_token"] == 4, "2,000 tokens at 512 a step"
    assert_same(results[0]["tokens"], results[1]["tokens"])


def test_several_seeded_answers_to_one_prompt_get_the_same_tokens(roomy: Pair) -> None:
    vanilla, elastic = (side.result("several_answers") for side in (roomy.vanilla, roomy.elastic))
    assert all(len({tuple(answer) for answer in four}) == 4 for four in vanilla["tokens"])
    assert_same(vanilla["tokens"], elastic["tokens"])


def test_an_answer_of_4000_tokens_is_the_same(roomy: Pair) -> None:
    vanilla, elastic = (side.result("long_answer") for side in (roomy.vanilla, roomy.elastic))
    assert len(vanilla["tokens"][0]) == 4000
    assert_same(vanilla["tokens"], elastic["tokens"])


def test_requests_beside_aborted_ones_get_the_same_tokens(roomy: Pair) -> None:
    vanilla, elastic = (side.result("abort_half") for side in (roomy.vanilla, roomy.elastic))
    assert sorted(vanilla["tokens"]) == sorted(elastic["tokens"])
    names = sorted(vanilla["tokens"])
    assert len(names) == 8
    assert_same([vanilla["tokens"][n] for n in names], [elastic["tokens"][n] for n in names])


def test_aborting_gives_blocks_back_at_once(roomy: Pair) -> None:
    for side in (roomy.vanilla, roomy.elastic):
        result = side.result("abort_half")
        assert 0 < result["held_after_abort"] < result["held"]


def test_a_reset_prefix_cache_forgets_and_answers_stay_the_same(roomy: Pair) -> None:
    for side in (roomy.vanilla, roomy.elastic):
        result = side.result("reset_prefix_cache")
        first, repeated, after_reset = result["rounds"]
        assert result["was_reset"]
        assert repeated["cached_tokens"] > 0
        assert after_reset["cached_tokens"] == 0
        assert first["tokens"] == repeated["tokens"] == after_reset["tokens"]
    reference = roomy.vanilla.result("reset_prefix_cache")["rounds"]
    elastic = roomy.elastic.result("reset_prefix_cache")["rounds"]
    assert_same([each["tokens"] for each in reference], [each["tokens"] for each in elastic])


@pytest.mark.parametrize("scenario", NAMES)
def test_every_block_comes_back(roomy: Pair, scenario: str) -> None:
    for side in (roomy.vanilla, roomy.elastic):
        result = side.result(scenario)
        for moment in ("blocks_before", "blocks_after"):
            counts = result[moment]
            assert (counts["live"], counts["usage"], counts["unfinished"]) == (0, 0, 0), moment


def test_a_vanilla_pool_is_full_again(roomy_vanilla: Outcome) -> None:
    """What `test_every_block_comes_back` leans on: vLLM itself loses no block here."""
    for name in NAMES:
        counts = roomy_vanilla.result(name)["blocks_after"]
        assert counts["free"] == counts["total"] - 1, "all but the null block"


def test_no_log_complains(roomy: Pair) -> None:
    for side in (roomy.vanilla, roomy.elastic):
        assert elasticity.complaints(side.log) == []


def test_an_elastic_engine_says_so_in_one_line(roomy: Pair) -> None:
    assert len(elasticity.start_lines(roomy.elastic.log)) == 1
    assert elasticity.vanilla_lines(roomy.elastic.log) == []


def test_an_engine_with_kvcached_switched_off_is_vanilla(roomy_vanilla: Outcome) -> None:
    outcome = roomy_vanilla
    assert elasticity.start_lines(outcome.log) == []
    assert outcome.report["memory"]["mappings"] == 0
