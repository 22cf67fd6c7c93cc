"""An engine with too little memory for its load preempts, and answers the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import elasticity
import engine
from comparison import assert_same
from conftest import Pair
from engine import Outcome, Scenario

# Requests of about 400 tokens, up to 64 at a time, in room for 4,096 tokens.
REQUESTS = 100
BLOCKS = 128
BLOCK_BYTES = 128 * 1024  # 32 tokens of 4 KiB
LOAD = (Scenario("mixed_lengths", {"requests": REQUESTS}),)
MAX_MODEL_LEN = 1024


@pytest.fixture(scope="module")
def tight(
    model: Path, run_vanilla: Callable[..., Outcome], run_elastic: Callable[..., Outcome]
) -> Pair:
    """A vanilla engine with few blocks; an elastic one with address space for many more, and
    physical memory for no more than vanilla's.

    The elastic one in vLLM's usual processes: the scheduler decides in one, the worker's pager acts
    in another, and the load never lets either rest.
    """
    blocks = BLOCKS + 1  # and the null block
    limits = {"KVCACHED_LIMIT": f"{BLOCKS * BLOCK_BYTES // 1024**2}MiB"}
    apart = engine.IN_MANY_PROCESSES
    return Pair.run(
        lambda: run_vanilla(
            model, LOAD, max_model_len=MAX_MODEL_LEN, num_gpu_blocks_override=blocks
        ),
        lambda: run_elastic(model, LOAD, limits, apart, max_model_len=MAX_MODEL_LEN),
    )


def test_vanilla_preempts_under_this_load_and_stays_true_to_its_tokens(
    tight: Pair, roomy_vanilla: Outcome
) -> None:
    result = tight.vanilla.result("mixed_lengths")
    assert result["preemptions"] > 0
    expected = roomy_vanilla.result("mixed_lengths")["tokens"][:REQUESTS]
    assert_same(expected, result["tokens"])


def test_an_elastic_engine_preempts_under_its_limit(tight: Pair) -> None:
    assert tight.elastic.result("mixed_lengths")["preemptions"] > 0


def test_preempted_requests_get_the_tokens_of_an_unconstrained_engine(
    tight: Pair, roomy_vanilla: Outcome
) -> None:
    expected = roomy_vanilla.result("mixed_lengths")["tokens"][:REQUESTS]
    assert_same(expected, tight.elastic.result("mixed_lengths")["tokens"])


def test_the_limit_holds_and_all_blocks_come_back(tight: Pair) -> None:
    result = tight.elastic.result("mixed_lengths")
    assert result["memory_after"]["resident"] <= BLOCKS * BLOCK_BYTES
    assert result["blocks_after"]["usage"] == 0


def test_no_log_complains_about_preemption(tight: Pair) -> None:
    for side in (tight.vanilla, tight.elastic):
        assert elasticity.complaints(side.log) == []
