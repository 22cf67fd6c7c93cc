"""An elastic engine answers what a vanilla one does, token by token, in float32.

SGLang's own checks are on and strict: a page that is lost, kept twice or freed twice stops the
engine.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import conftest
import engine
import neighbour
import tiny_cohere
import tiny_gemma
import window_attention
from comparison import assert_same
from engine import Outcome

SMALL = {"KVCACHED_CAPACITY": "1310720"}
"""Five extents, of which SGLang is told a sixteenth less: 2,400 tokens."""
BESIDE = {"KVCACHED_CAPACITY": str(neighbour.CAPACITY), "KVCACHED_FLOOR": "524288"}
"""A device that a neighbour may have most of."""
HOPEFUL = {"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "16"}
"""Admits requests as if they ended soon, so that some must be retracted later."""


def assert_answers_are_those_of(vanilla: Outcome, elastic: Outcome, allowed: int = 0) -> None:
    for name, scenario in elastic.scenarios.items():
        assert_same(vanilla.scenarios[name].answers, scenario.answers, allowed)


def retractions(outcome: Outcome) -> int:
    return outcome.log.count("KV cache pool is full. Retract requests")


@pytest.mark.contract
@pytest.mark.parametrize("scenario", conftest.ROOMY)
def test_with_room_all_answers_are_vanillas(
    vanilla: Outcome, roomy: Outcome, scenario: str
) -> None:
    assert_same(vanilla.scenarios[scenario].answers, roomy.scenarios[scenario].answers)


@pytest.mark.contract
def test_a_small_budget_retracts_and_changes_no_answer(
    model: Path, vanilla: Outcome, run_elastic: Callable[..., Outcome]
) -> None:
    outcome = run_elastic(model, ("crowd", "mixed", "aborts"), {**SMALL, **HOPEFUL})
    assert retractions(outcome) > 0
    assert retractions(vanilla) == 0
    assert_answers_are_those_of(vanilla, outcome)
    assert max(found.peak for found in outcome.scenarios.values()) <= int(
        SMALL["KVCACHED_CAPACITY"]
    )


def test_a_neighbour_that_holds_most_of_the_device_changes_no_answer(
    model: Path, vanilla: Outcome, run_elastic: Callable[..., Outcome]
) -> None:
    limits = {
        "KVCACHED_CAPACITY": str(neighbour.CAPACITY),
        "KVCACHED_FLOOR": "524288",
        "KVCACHED_MAX_CACHED_TOKENS": "-1",
        **HOPEFUL,
    }
    scenarios = ("beside_a_neighbour", "pressed_while_idle", "mixed", "metrics")
    outcome = run_elastic(model, scenarios, limits, enable_metrics=True)
    left = neighbour.CAPACITY - neighbour.MOST
    beside = outcome.scenarios["beside_a_neighbour"]
    assert retractions(outcome) > 0
    assert_same(vanilla.scenarios["crowd"].answers, beside.answers)
    assert beside.peak <= left
    # An idle engine that keeps all its prefixes gives them up within a second.
    pressed = outcome.scenarios["pressed_while_idle"]
    assert pressed.peak > left
    assert pressed.answers[0][0] <= left
    assert_same(vanilla.scenarios["mixed"].answers, outcome.scenarios["mixed"].answers)
    # SGLang's own /metrics tells what the kernel does.
    measured = outcome.scenarios["metrics"]
    assert measured.answers == [[measured.after["mapped"]]]


@pytest.mark.slow
def test_pages_of_sixteen_tokens_change_no_answer(
    model: Path,
    vanilla: Outcome,
    run_elastic: Callable[..., Outcome],
) -> None:
    # SGLang 0.5.14 fills pages with Triton, which has no CPU behind it but its interpreter.
    limits = {**SMALL, **HOPEFUL, "TRITON_INTERPRET": "1"}
    outcome = run_elastic(model, ("mixed", "long_prompts", "crowd"), limits, page_size=16)
    assert retractions(outcome) > 0
    assert_answers_are_those_of(vanilla, outcome)


@pytest.mark.slow
def test_an_engine_without_a_radix_cache_changes_no_answer(
    model: Path, vanilla: Outcome, run_elastic: Callable[..., Outcome]
) -> None:
    outcome = run_elastic(model, ("mixed", "crowd"), SMALL, disable_radix_cache=True)
    assert_answers_are_those_of(vanilla, outcome)


@pytest.mark.slow
def test_an_engine_that_does_not_overlap_changes_no_answer(
    model: Path, vanilla: Outcome, run_elastic: Callable[..., Outcome]
) -> None:
    outcome = run_elastic(model, ("mixed", "crowd"), SMALL, disable_overlap_schedule=True)
    assert_answers_are_those_of(vanilla, outcome)


@pytest.mark.slow
def test_sliding_windows_over_an_ordinary_pool_change_no_answer(
    tmp_path: Path, run_elastic: Callable[..., Outcome]
) -> None:
    # SGLang gives Gemma 3 one pool for all its layers.
    gemma = tiny_gemma.write(tmp_path)
    scenarios = ("mixed", "long_prompts")
    vanilla = engine.run(gemma, tmp_path / "engine", scenarios, {"ENABLE_KVCACHED": "false"})
    assert vanilla.status == 0, vanilla.log[-4000:]
    assert_answers_are_those_of(vanilla, run_elastic(gemma, scenarios, SMALL))


@pytest.mark.slow
@pytest.mark.skipif(
    version("sglang") != "0.5.23", reason="this SGLang takes no models of ours for hybrids"
)
@pytest.mark.parametrize("options", [{}, {"disable_radix_cache": True}])
def test_sliding_windows_in_a_hybrid_pool_change_no_answer(
    tmp_path: Path, run_elastic: Callable[..., Outcome], options: dict[str, Any]
) -> None:
    cohere = tiny_cohere.write(tmp_path)
    # Without a radix cache SGLang makes the windows' pool the larger one, and long prompts do not
    # fit into what is left.
    scenarios = ("mixed", "crowd") if options else ("mixed", "long_prompts", "crowd")
    surroundings = {**tiny_cohere.SURROUNDINGS, **window_attention.installed(tmp_path / "plugin")}
    vanilla = engine.run(
        cohere, tmp_path / "engine", scenarios, {**surroundings, "ENABLE_KVCACHED": "false"}
    )
    assert vanilla.status == 0, vanilla.log[-4000:]
    # The small budget is for both pools together.
    limits = {**SMALL, **HOPEFUL, **surroundings, "KVCACHED_SANITY_CHECK": "true"}
    outcome = run_elastic(cohere, (*scenarios, "flush"), limits, **options)
    for part in ("full attention", "sliding windows"):
        assert f"kvcached: elastic KV cache of {part}:" in outcome.log
    assert retractions(outcome) > 0
    for name in scenarios:
        assert_same(vanilla.scenarios[name].answers, outcome.scenarios[name].answers)
    assert max(found.peak for found in outcome.scenarios.values()) <= int(
        SMALL["KVCACHED_CAPACITY"]
    )
    # Page 0 and the smallest slack of each, two tensors of a granule an extent.
    assert outcome.scenarios["flush"].after["resident"] <= 2 * 2 * (2 * 65536)


@pytest.mark.slow
def test_two_ranks_agree_and_change_no_answer(
    model: Path, tmp_path: Path, run_elastic: Callable[..., Outcome]
) -> None:
    surroundings = {**HOPEFUL, "SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
    scenarios = ("mixed", "long_prompts", "crowd")
    # Sums over two ranks break a tie otherwise than sums over one where a request is retracted, so
    # the measure is a vanilla engine of two ranks that retracts as well.
    vanilla = engine.run(
        model,
        tmp_path,
        scenarios,
        {**surroundings, "ENABLE_KVCACHED": "false"},
        tp_size=2,
        max_total_tokens=2047,
    )
    assert retractions(vanilla) > 0
    # Each rank's cache is half as large, and both are of one device here.
    outcome = run_elastic(model, scenarios, {**SMALL, **surroundings}, tp_size=2)
    assert_answers_are_those_of(vanilla, outcome)
    said = [line for line in outcome.log.splitlines() if "KV cache pool is full" in line]
    by_rank = [
        [line.partition("] ")[2] for line in said if f" TP{rank}]" in line] for rank in range(2)
    ]
    assert by_rank[0]
    assert by_rank[0] == by_rank[1]


@pytest.mark.slow
@pytest.mark.parametrize("stages", [1, 2])
def test_a_neighbour_takes_no_memory_from_a_prompt_that_is_half_in(
    model: Path, tmp_path: Path, run_elastic: Callable[..., Outcome], stages: int
) -> None:
    options = {"pp_size": stages, "chunked_prefill_size": 64}
    vanilla = engine.run(model, tmp_path, ("long_prompt",), {"ENABLE_KVCACHED": "false"}, **options)
    assert vanilla.status == 0, vanilla.log[-4000:]
    limits = {**BESIDE, "SGLANG_CPU_OMP_THREADS_BIND": bound_to(stages)}
    outcome = run_elastic(model, ("long_prompt_beside_a_neighbour",), limits, **options)
    beside = outcome.scenarios["long_prompt_beside_a_neighbour"]
    assert_same(vanilla.scenarios["long_prompt"].answers, beside.answers)


@pytest.mark.slow
@pytest.mark.skipif(
    version("sglang") != "0.5.23", reason="this SGLang takes no models of ours for hybrids"
)
def test_a_neighbour_takes_no_memory_of_windows_from_a_prompt_that_is_half_in(
    tmp_path: Path, run_elastic: Callable[..., Outcome]
) -> None:
    # Windows of many chunks, so that a prompt needs more and more of them for a while.
    cohere = tiny_cohere.write(tmp_path, window=1500)
    surroundings = {**tiny_cohere.SURROUNDINGS, **window_attention.installed(tmp_path / "plugin")}
    vanilla_environment = {**surroundings, "ENABLE_KVCACHED": "false"}
    vanilla = engine.run(cohere, tmp_path / "engine", ("long_prompt",), vanilla_environment)
    assert vanilla.status == 0, vanilla.log[-4000:]
    limits = {**BESIDE, **surroundings, "KVCACHED_SANITY_CHECK": "true"}
    outcome = run_elastic(cohere, ("long_prompt_beside_a_neighbour",), limits)
    beside = outcome.scenarios["long_prompt_beside_a_neighbour"]
    assert_same(vanilla.scenarios["long_prompt"].answers, beside.answers)


def bound_to(stages: int) -> str:
    """SGLang's processors by rank. Before 0.5.17 it counts those of a stage alone."""
    alone = version("sglang").startswith(("0.5.11", "0.5.12", "0.5.14"))
    return "0" if alone else "|".join(map(str, range(stages)))


@pytest.mark.slow
def test_two_stages_see_one_limit_and_change_no_answer(
    model: Path, vanilla: Outcome, run_elastic: Callable[..., Outcome]
) -> None:
    # Each stage has one of two layers, and both are of one device here.
    surroundings = {**SMALL, **HOPEFUL, "SGLANG_CPU_OMP_THREADS_BIND": bound_to(2)}
    outcome = run_elastic(model, ("crowd", "long_prompts", "aborts"), surroundings, pp_size=2)
    assert_answers_are_those_of(vanilla, outcome)
    said = [line for line in outcome.log.splitlines() if "KV cache pool is full" in line]
    by_stage = [
        [line.partition("] ")[2] for line in said if f" PP{stage}]" in line] for stage in range(2)
    ]
    assert by_stage[0]
    assert by_stage[0] == by_stage[1]
    assert max(found.peak for found in outcome.scenarios.values()) <= int(
        SMALL["KVCACHED_CAPACITY"]
    )


@pytest.mark.slow
def test_two_stages_beside_a_neighbour_change_no_answer_and_give_back(
    model: Path, vanilla: Outcome, run_elastic: Callable[..., Outcome]
) -> None:
    limits = {
        "KVCACHED_CAPACITY": str(neighbour.CAPACITY),
        "KVCACHED_FLOOR": "524288",
        "KVCACHED_MAX_CACHED_TOKENS": "-1",
        "SGLANG_CPU_OMP_THREADS_BIND": bound_to(2),
        **HOPEFUL,
    }
    scenarios = ("beside_a_neighbour", "pressed_while_idle", "flush")
    outcome = run_elastic(model, scenarios, limits, pp_size=2)
    left = neighbour.CAPACITY - neighbour.MOST
    beside = outcome.scenarios["beside_a_neighbour"]
    assert retractions(outcome) > 0
    assert_same(vanilla.scenarios["crowd"].answers, beside.answers)
    assert beside.peak <= left
    pressed = outcome.scenarios["pressed_while_idle"]
    assert pressed.peak > left
    assert pressed.answers[0][0] <= left
    # Page 0 and the smallest slack of each stage.
    assert outcome.scenarios["flush"].after["resident"] <= 2 * 2 * (2 * 65536)
