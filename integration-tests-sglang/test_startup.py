"""At start an engine is elastic, or vanilla and says why, or refuses: never half of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engine
from comparison import assert_same
from engine import Outcome

TWO_RANKS = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}

UNCOVERED: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({"enable_hierarchical_cache": True}, {}, "HiCache"),
    (
        {"disaggregation_mode": "decode", "disaggregation_transfer_backend": "fake"},
        {},
        "PD disaggregation",
    ),
    ({}, {"SGLANG_ENABLE_POST_CAPTURE_KV_SIZING": "1"}, "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING"),
]


def lines(outcome: Outcome) -> list[str]:
    return [line for line in outcome.log.splitlines() if "kvcached:" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "variables", "reason"), UNCOVERED)
def test_required_refuses_what_is_not_covered_in_one_line(
    model: Path,
    tmp_path: Path,
    new_shm_dir: Callable[[], Path],
    options: dict[str, Any],
    variables: dict[str, str],
    reason: str,
) -> None:
    environment = {
        "KVCACHED_REQUIRED": "true",
        "KVCACHED_SHM_DIR": str(new_shm_dir()),
        **variables,
    }
    outcome = engine.run(model, tmp_path, ("idle",), environment, **options)
    assert outcome.status != 0
    assert not outcome.scenarios
    assert any("KVCACHED_REQUIRED=true, but:" in line and reason in line for line in lines(outcome))


@pytest.mark.slow
def test_what_is_not_covered_runs_vanilla_and_says_so(
    model: Path,
    tmp_path: Path,
    new_shm_dir: Callable[[], Path],
    vanilla: Outcome,
) -> None:
    environment = {
        "KVCACHED_SHM_DIR": str(new_shm_dir()),
        "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING": "1",
    }
    outcome = engine.run(model, tmp_path, ("mixed",), environment)
    assert outcome.status == 0, outcome.log[-4000:]
    (said,) = lines(outcome)
    assert "kvcached: vanilla: " in said
    assert_same(vanilla.scenarios["mixed"].answers, outcome.scenarios["mixed"].answers)
    assert outcome.start["mappings"] == 0


@pytest.mark.slow
def test_data_parallel_attention_starts_elastic(
    model: Path, run_elastic: Callable[..., Outcome]
) -> None:
    # With PyTorch's attention it starts, and SGLang stops at the first request.
    options = {"tp_size": 2, "dp_size": 2, "enable_dp_attention": True}
    outcome = run_elastic(model, ("idle",), TWO_RANKS, **options)
    assert "2 ranks" in outcome.log
    # Page 0 and the smallest slack of each rank.
    assert 0 < outcome.scenarios["idle"].after["resident"] <= 2 * 2 * (4 * 65536)


@pytest.mark.slow
def test_an_engine_whose_plugins_leave_us_out_is_vanilla(
    model: Path, tmp_path: Path, new_shm_dir: Callable[[], Path]
) -> None:
    environment = {"SGLANG_PLUGINS": "another", "KVCACHED_SHM_DIR": str(new_shm_dir())}
    outcome = engine.run(model, tmp_path, ("idle",), environment)
    assert outcome.status == 0, outcome.log[-4000:]
    assert lines(outcome) == []
    assert outcome.start["mappings"] == 0
