"""Engines that were all given one KVCACHED_IPC_NAME and start in the same second."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import elasticity
import engine
from comparison import assert_same
from engine import Outcome, Scenario

pytestmark = pytest.mark.slow

NAME = "shared_cache"
LOAD = (Scenario("mixed_lengths", {"requests": 24}),)


@pytest.fixture(scope="module")
def together(
    model: Path, tmp_path_factory: pytest.TempPathFactory, new_shm_dir: Callable[[], Path]
) -> list[Outcome]:
    """Two engines of one name, in one place."""
    folder = new_shm_dir()
    settings = elasticity.elastic(folder, KVCACHED_IPC_NAME=NAME)
    reports = [tmp_path_factory.mktemp("same-name") / "report.json" for _ in range(2)]
    started = [engine.start(model, LOAD, settings, report) for report in reports]
    outcomes = []
    for process, report in zip(started, reports, strict=True):
        with process:
            log, _ = process.communicate(timeout=600)
        found = json.loads(report.read_text()) if report.exists() else {}
        outcomes.append(Outcome(process.returncode, log, found, 0.0))
    assert list(folder.iterdir()) == []
    return outcomes


def test_engines_of_one_name_start_together_and_are_one_group(together: list[Outcome]) -> None:
    for outcome in together:
        assert outcome.finished, outcome.last_lines()
        assert elasticity.complaints(outcome.log) == []
        assert elasticity.start_lines(outcome.log)
    leases = [re.findall(rf"lease on host: {NAME}/(\w+)", outcome.log) for outcome in together]
    assert [len(found) for found in leases] == [1, 1]
    assert leases[0] != leases[1]


def test_engines_of_one_name_keep_their_answers_apart(
    together: list[Outcome], run_vanilla: Callable[..., Outcome], model: Path
) -> None:
    expected = run_vanilla(model, LOAD).result("mixed_lengths")["tokens"]
    for outcome in together:
        assert_same(expected, outcome.result("mixed_lengths")["tokens"])
