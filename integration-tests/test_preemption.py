"""An engine with too little memory for its load preempts, and answers the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import elasticity
import engine
from comparison import assert_same
from engine import Outcome, Scenario

# Requests of about 400 tokens, up to 64 at a time, in room for 4,096 tokens.
REQUESTS = 100
BLOCKS = 128
BLOCK_BYTES = 128 * 1024  # 32 tokens of 4 KiB
LOAD = (Scenario("mixed_lengths", {"requests": REQUESTS}),)
MAX_MODEL_LEN = 1024


@pytest.fixture(scope="module")
def tight_vanilla(model: Path, run_vanilla: Callable[..., Outcome]) -> Outcome:
    return run_vanilla(
        model,
        LOAD,
        max_model_len=MAX_MODEL_LEN,
        num_gpu_blocks_override=BLOCKS + 1,  # and the null block
    )


@pytest.fixture(scope="module")
def tight_elastic(model: Path, run_elastic: Callable[..., Outcome]) -> Outcome:
    """Address space for much more, physical memory for no more than vanilla's blocks.

    In vLLM's usual processes: the scheduler decides in one, the worker's pager acts in
    another, and the load never lets either rest.
    """
    return run_elastic(
        model,
        LOAD,
        limits={"KVCACHED_LIMIT": f"{BLOCKS * BLOCK_BYTES // 1024**2}MiB"},
        settings=engine.IN_MANY_PROCESSES,
        max_model_len=MAX_MODEL_LEN,
    )


def test_vanilla_preempts_under_this_load_and_stays_true_to_its_tokens(
    tight_vanilla: Outcome, roomy_vanilla: Outcome
) -> None:
    tight = tight_vanilla.result("mixed_lengths")
    assert tight["preemptions"] > 0
    expected = roomy_vanilla.result("mixed_lengths")["tokens"][:REQUESTS]
    assert_same(expected, tight["tokens"])


def test_an_elastic_engine_preempts_under_its_limit(tight_elastic: Outcome) -> None:
    assert tight_elastic.result("mixed_lengths")["preemptions"] > 0


def test_preempted_requests_get_the_tokens_of_an_unconstrained_engine(
    tight_elastic: Outcome, roomy_vanilla: Outcome
) -> None:
    expected = roomy_vanilla.result("mixed_lengths")["tokens"][:REQUESTS]
    assert_same(expected, tight_elastic.result("mixed_lengths")["tokens"])


def test_the_limit_holds_and_all_blocks_come_back(tight_elastic: Outcome) -> None:
    result = tight_elastic.result("mixed_lengths")
    assert result["memory_after"]["resident"] <= BLOCKS * BLOCK_BYTES
    assert result["blocks_after"]["usage"] == 0


def test_no_log_complains_about_preemption(tight_vanilla: Outcome, tight_elastic: Outcome) -> None:
    for side in (tight_vanilla, tight_elastic):
        assert elasticity.complaints(side.log) == []
