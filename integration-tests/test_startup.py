"""At start an engine is elastic, or vanilla and says why, or refuses: never half of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import elasticity
import engine
from comparison import assert_same
from engine import Outcome, Scenario

TWO = (Scenario("mixed_lengths", {"requests": 2}),)

OWN_CLASSES: dict[str, Any] = {
    "scheduler_cls": "own_classes.OwnScheduler",
    "worker_cls": "own_classes.OwnWorker",
}


def assert_vanilla(outcome: Outcome, reason: str, roomy_vanilla: Outcome) -> None:
    """Check that an engine serves without kvcached and gave `reason` in its one line."""
    assert outcome.finished, outcome.last_lines()
    said = elasticity.vanilla_lines(outcome.log)
    assert len(said) == 1, elasticity.lines_about_kvcached(outcome.log)
    assert reason in said[0]
    assert elasticity.start_lines(outcome.log) == []
    assert outcome.report["memory"]["mappings"] == 0
    expected = roomy_vanilla.result("mixed_lengths")["tokens"][:2]
    assert_same(expected, outcome.result("mixed_lengths")["tokens"])
    assert elasticity.complaints(outcome.log) == []


def assert_refused(outcome: Outcome, *said: str) -> None:
    """Check that an engine did not start and that one line says all of `said`."""
    assert not outcome.report, "the engine started"
    assert outcome.returncode != 0
    lines = [line for line in outcome.log.splitlines() if all(word in line for word in said)]
    assert lines, f"no line says {said}; the log ends:\n{outcome.last_lines()}"


@pytest.fixture
def surroundings(new_shm_dir: Callable[[], Path]) -> dict[str, str]:
    """The environment of an engine that may also be vanilla."""
    return {**elasticity.elastic(new_shm_dir()), "KVCACHED_REQUIRED": "false"}


@pytest.mark.parametrize(
    "option", ["scheduler_cls", pytest.param("worker_cls", marks=pytest.mark.slow)]
)
def test_a_users_own_class_wins_and_a_line_says_so(
    model: Path, roomy_vanilla: Outcome, surroundings: dict[str, str], option: str
) -> None:
    outcome = engine.run(model, TWO, surroundings, **{option: OWN_CLASSES[option]})
    assert_vanilla(outcome, option.replace("_", "-"), roomy_vanilla)


def test_required_refuses_what_cannot_be_elastic(model: Path, surroundings: dict[str, str]) -> None:
    surroundings["KVCACHED_REQUIRED"] = "true"
    outcome = engine.run(model, TWO, surroundings, scheduler_cls=OWN_CLASSES["scheduler_cls"])
    assert_refused(outcome, "KVCACHED_REQUIRED", "scheduler-cls")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KVCACHED_LIMIT", "banana"),
        pytest.param("KVCACHED_MAX_CACHED_TOKENS", "-2", marks=pytest.mark.slow),
        pytest.param("KVCACHED_MIN_RESERVED_PAGES", "many", marks=pytest.mark.slow),
        pytest.param("KVCACHED_LAYOUT", "diagonal", marks=pytest.mark.slow),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_with_its_value(
    model: Path, surroundings: dict[str, str], variable: str, value: str
) -> None:
    assert_refused(engine.run(model, TWO, {**surroundings, variable: value}), variable, value)


def test_a_target_device_that_hides_plugins_is_answered_with_two_options(
    model: Path, roomy_vanilla: Outcome, surroundings: dict[str, str]
) -> None:
    """With VLLM_TARGET_DEVICE=cpu, vLLM 0.29 and later asks no platform plugin."""
    outcome = engine.run(model, TWO, {**surroundings, "VLLM_TARGET_DEVICE": "cpu"})
    assert_vanilla(outcome, f"--scheduler-cls {elasticity.SCHEDULER_CLASS}", roomy_vanilla)
    assert_vanilla(outcome, f"--worker-cls {elasticity.WORKER_CLASS}", roomy_vanilla)


def test_with_these_two_options_it_is_elastic(
    model: Path, roomy_vanilla: Outcome, run_elastic: Callable[..., Outcome]
) -> None:
    options: dict[str, Any] = {
        "scheduler_cls": elasticity.SCHEDULER_CLASS,
        "worker_cls": elasticity.WORKER_CLASS,
    }
    outcome = run_elastic(model, TWO, settings={"VLLM_TARGET_DEVICE": "cpu"}, **options)
    expected = roomy_vanilla.result("mixed_lengths")["tokens"][:2]
    assert_same(expected, outcome.result("mixed_lengths")["tokens"])
