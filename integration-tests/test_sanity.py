"""The sanity check leaves a sound engine as it is, and stops an unsound one."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import elasticity
import engine
from comparison import assert_same
from conftest import ROOMY
from engine import Outcome, Scenario

CHECKED = {"KVCACHED_SANITY_CHECK": "true"}
# The pattern as float32, the tests' dtype.
PATTERN = struct.unpack("f", b"\x3f" * 4)[0]

LOAD = (
    Scenario("look_at_unwritten_memory"),
    *(scenario for scenario in ROOMY if scenario.name != "long_answer"),
)
SAME_TOKENS = ("mixed_lengths", "shared_prefixes", "several_answers")


@pytest.fixture(scope="module")
def checked(model: Path, run_elastic: Callable[..., Outcome]) -> Outcome:
    """An engine under the check that keeps few prefixes, so that extents come and go."""
    return run_elastic(model, LOAD, limits={**CHECKED, "KVCACHED_MAX_CACHED_TOKENS": 2000})


def test_a_checked_engine_says_so_where_it_starts(checked: Outcome) -> None:
    (line,) = elasticity.start_lines(checked.log)
    assert line.endswith(", sanity check on")


def test_memory_that_nobody_wrote_holds_the_pattern(checked: Outcome) -> None:
    assert checked.result("look_at_unwritten_memory")["values"] == [PATTERN]


@pytest.mark.parametrize("scenario", SAME_TOKENS)
def test_a_checked_engine_gives_the_tokens_of_a_vanilla_one(
    checked: Outcome, roomy_vanilla: Outcome, scenario: str
) -> None:
    assert_same(roomy_vanilla.result(scenario)["tokens"], checked.result(scenario)["tokens"])


def test_a_sound_engine_gets_no_complaint(checked: Outcome) -> None:
    assert elasticity.complaints(checked.log) == []
    assert "sanity check:" not in checked.log


@pytest.mark.slow
def test_preemption_and_separate_processes_are_no_violations(
    model: Path, roomy_vanilla: Outcome, run_elastic: Callable[..., Outcome]
) -> None:
    outcome = run_elastic(
        model,
        [Scenario("mixed_lengths")],
        limits={**CHECKED, "KVCACHED_LIMIT": "16MiB"},
        settings=engine.IN_MANY_PROCESSES,
        max_model_len=1024,
    )
    result = outcome.result("mixed_lengths")
    assert result["preemptions"] > 0
    assert_same(roomy_vanilla.result("mixed_lengths")["tokens"], result["tokens"])


def test_a_planted_block_ends_the_engine_with_the_name_of_its_request(
    model: Path, new_shm_dir: Callable[[], Path]
) -> None:
    outcome = engine.run(
        model,
        [Scenario("plan_with_an_absent_block")],
        elasticity.elastic(new_shm_dir(), **CHECKED),
    )
    planted = re.search(r"planted block (\d+)", outcome.log)
    assert planted, outcome.last_lines()
    assert outcome.returncode == 1
    found = re.findall(
        r"kvcached: sanity check: step 1: rank 0: request '(.*)' uses block (\d+) of extent \d+, "
        r"which is absent$",
        outcome.log,
        re.MULTILINE,
    )
    assert len(found) == 1, outcome.last_lines()
    assert found[0][0].startswith("victim")
    assert found[0][1] == planted[1]
