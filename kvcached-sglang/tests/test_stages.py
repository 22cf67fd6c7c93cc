"""The stages of a pipeline never decide otherwise, never wait for each other for ever, and find the
memory of every batch.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest

pytest.importorskip("greenlet")

from simulated_device import PatientPool
from simulated_pipeline import STAGES, SimulatedPipeline, Stuck
from test_rank_determinism import OUT_OF_MEMORY, no_clock

from kvcached_sglang import keeper
from kvcached_sglang.needs import Needs

SCHEDULES = int(os.environ.get("SCHEDULES", "1000")) // 5


def run(seeds: range, late: int = STAGES) -> Counter[str]:
    happened: Counter[str] = Counter()
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="kvcached-tests-", dir=in_memory) as where:
        for seed in seeds:
            with mock.patch.object(keeper, "time", no_clock(seed)):
                stages = SimulatedPipeline(Path(where), seed, late)
                stages.run()
            happened += stages.happened
    return happened


def test_three_stages_never_diverge_and_never_stand_still() -> None:
    happened = run(range(SCHEDULES))
    for what in ("begins", "goes on", "takes", "evicts", "retracts", "ends"):
        assert happened[what] > SCHEDULES // 20, happened
    # What was offered as firm has stayed.
    assert happened["lacks"] == 0, happened


def test_prompts_that_are_half_in_without_memory_for_the_rest_are_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Neither offered nor promised.
    only_the_batch = property(lambda needs: needs.decode + needs.prefill)
    monkeypatch.setattr(Needs, "next_batch", only_the_batch)
    monkeypatch.setattr(PatientPool, "promise", lambda pool, pages: None, raising=False)
    with pytest.raises(AssertionError, match=OUT_OF_MEMORY):
        run(range(200))


@pytest.mark.parametrize("late", [0, 1])
def test_a_first_stage_that_waits_for_later_turns_of_the_others_stands_still(late: int) -> None:
    # With three stages the last is two turns behind.
    with pytest.raises(Stuck):
        run(range(20), late)
