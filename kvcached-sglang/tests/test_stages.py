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

from simulated_pipeline import STAGES, SimulatedPipeline, Stuck
from test_rank_determinism import no_clock

from kvcached_sglang import keeper

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
    for what in ("begins", "takes", "evicts", "retracts", "ends"):
        assert happened[what] > SCHEDULES // 20, happened
    # What was offered as firm has stayed.
    assert happened["lacks"] == 0, happened


@pytest.mark.parametrize("late", [0, 1])
def test_a_first_stage_that_waits_for_later_turns_of_the_others_stands_still(late: int) -> None:
    # With three stages the last is two turns behind.
    with pytest.raises(Stuck):
        run(range(20), late)
