"""What an engine accepts it can finish; what can never fit is refused, and early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import elasticity
import engine
from comparison import assert_same
from conftest import Pair
from engine import Outcome, Scenario
from test_startup import TWO, assert_refused

MAX_MODEL_LEN = 1024
SCENARIOS = (Scenario("greatest_requests"), Scenario("overlong_prompt"))

# 36 blocks of 128 KiB. One request of 1,024 tokens takes 32, the null block one more.
BARELY_ENOUGH = "4608KiB"


@pytest.fixture(scope="module")
def barely(
    model: Path, run_vanilla: Callable[..., Outcome], run_elastic: Callable[..., Outcome]
) -> Pair:
    """A vanilla engine with all the room it wants; an elastic one with room for one request."""
    limits = {"KVCACHED_LIMIT": BARELY_ENOUGH}
    return Pair.run(
        lambda: run_vanilla(model, SCENARIOS, max_model_len=MAX_MODEL_LEN),
        lambda: run_elastic(model, SCENARIOS, limits, max_model_len=MAX_MODEL_LEN),
    )


def test_with_room_for_one_greatest_request_all_of_them_finish(barely: Pair) -> None:
    vanilla, elastic = (
        side.result("greatest_requests")["tokens"] for side in (barely.vanilla, barely.elastic)
    )
    assert_same(vanilla, elastic)


def test_a_prompt_that_can_never_fit_is_refused_and_the_next_answered(barely: Pair) -> None:
    vanilla, elastic = (side.result("overlong_prompt") for side in (barely.vanilla, barely.elastic))
    assert vanilla["refusal"]
    assert vanilla["refusal"] == elastic["refusal"]
    assert_same(vanilla["tokens"], elastic["tokens"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit",
    [
        pytest.param("8MiB", id="below-one-request"),  # of 8,192 tokens, 32 MiB
        pytest.param("64KiB", id="below-what-is-always-committed"),
    ],
)
def test_a_limit_that_is_too_low_refuses_to_start_and_names_the_variable(
    model: Path, new_shm_dir: Callable[[], Path], limit: str
) -> None:
    settings = elasticity.elastic(new_shm_dir(), KVCACHED_LIMIT=limit)
    assert_refused(engine.run(model, TWO, settings), "KVCACHED_LIMIT")
