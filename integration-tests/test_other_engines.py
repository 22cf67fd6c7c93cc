"""Engines of other shapes: sliding windows, two ranks, prompts without answers.

All are marked slow: each pair takes one to three minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import elasticity
import engine
from comparison import assert_same
from engine import Outcome, Scenario

pytestmark = pytest.mark.slow

FEW = (Scenario("mixed_lengths", {"requests": 24}),)

# vLLM 0.32 on a CPU makes the buffers that pipeline stages hand over only while it warms
# up, and it warms up only what it compiles. "eager" compiles without a C++ compiler.
PIPELINE: dict[str, Any] = {
    "pipeline_parallel_size": 2,
    "enforce_eager": False,
    "compilation_config": {"mode": 2, "backend": "eager"},
}
TENSOR: dict[str, Any] = {"tensor_parallel_size": 2}


@pytest.mark.parametrize("shape", [TENSOR, PIPELINE], ids=["tensor", "pipeline"])
def test_two_ranks_give_the_tokens_of_one(
    model: Path,
    run_vanilla: Callable[..., Outcome],
    run_elastic: Callable[..., Outcome],
    shape: dict[str, Any],
) -> None:
    vanilla = run_vanilla(model, FEW, engine.IN_MANY_PROCESSES, **shape)
    elastic = run_elastic(model, FEW, settings=engine.IN_MANY_PROCESSES, **shape)
    expected, actual = (side.result("mixed_lengths") for side in (vanilla, elastic))
    assert_same(expected["tokens"], actual["tokens"])
    assert actual["blocks_after"]["usage"] == 0
    assert elasticity.complaints(elastic.log) == []


def test_a_sliding_window_model_gets_the_same_tokens(
    window_model: Path,
    run_vanilla: Callable[..., Outcome],
    run_elastic: Callable[..., Outcome],
) -> None:
    scenarios = (
        Scenario("mixed_lengths", {"requests": 80}),
        Scenario("long_prompt_in_chunks"),
        Scenario("shared_prefixes"),
        Scenario("abort_half"),
    )
    vanilla = run_vanilla(window_model, scenarios)
    elastic = run_elastic(window_model, scenarios)
    for name in ("mixed_lengths", "long_prompt_in_chunks", "shared_prefixes"):
        assert_same(vanilla.result(name)["tokens"], elastic.result(name)["tokens"])
    for scenario in scenarios:
        assert elastic.result(scenario.name)["blocks_after"]["live"] == 0
    assert elasticity.complaints(elastic.log) == []


@pytest.mark.parametrize("ranks", [{}, PIPELINE], ids=["alone", "pipeline"])
def test_embeddings_are_the_same_and_their_memory_goes(
    model: Path,
    run_vanilla: Callable[..., Outcome],
    run_elastic: Callable[..., Outcome],
    ranks: dict[str, Any],
) -> None:
    # Of a pipeline's stages the last one alone has something to answer, and none samples.
    shape = {"runner": "pooling", "convert": "embed", **ranks}
    alone, none = engine.IN_MANY_PROCESSES, {"KVCACHED_MAX_CACHED_TOKENS": "0"}
    vanilla = run_vanilla(model, [Scenario("embed")], alone, **shape)
    elastic = run_elastic(model, [Scenario("embed")], settings={**alone, **none}, **shape)
    held = elastic.result("embed")["memory_one_second_later"]
    assert held["resident"] < 4 << 20, "of some 30 MiB"
    pairs = zip(
        vanilla.result("embed")["embeddings"], elastic.result("embed")["embeddings"], strict=True
    )
    for expected, actual in pairs:
        assert math.dist(expected, actual) < 1e-6  # of unit length both
