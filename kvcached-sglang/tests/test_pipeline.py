"""Stages in processes of their own settle, over a real process group, by what was promised."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed, multiprocessing

from kvcached_sglang.agreement import Terms
from kvcached_sglang.pipeline import GroupLine, Offer, StageRounds

STAGES = 3
ROUNDS = 40


def _stage(stage: int, store: str, out: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=stage, world_size=STAGES
    )
    line = GroupLine(distributed.group.WORLD, list(range(STAGES)))
    rounds = StageRounds(line, stage, STAGES)
    told = []
    for number in range(ROUNDS):
        # Each stage offers less than the one before it, and the last one owes.
        offer = Offer(1000 * (STAGES - stage) + number, 9000 - stage, 7 if stage == 2 else 0)
        terms = rounds.settle(
            offer, lambda worst: Terms(worst.firm, worst.evict) if worst else Terms(0, 0)
        )
        told.append([terms.pages, terms.evict, rounds.promised])
    torch.save(told, f"{out}.{stage}")


def _told(tmp_path: Path) -> list[list[list[int]]]:
    arguments = (str(tmp_path / "store"), str(tmp_path / "out"))
    multiprocessing.spawn(_stage, args=arguments, nprocs=STAGES)
    return [torch.load(tmp_path / f"out.{stage}") for stage in range(STAGES)]


def test_stages_settle_by_the_least_that_was_offered_as_many_rounds_ago(tmp_path: Path) -> None:
    told = _told(tmp_path)
    pages = [[terms[0] for terms in stage] for stage in told]
    assert pages[0] == [0] * STAGES + [1000 + number for number in range(ROUNDS - STAGES)]
    assert pages[1] == pages[2] == pages[0]
    evicted = [[terms[1] for terms in stage] for stage in told]
    assert evicted[1] == evicted[2] == evicted[0]
    # Nobody is asked again for what is on its way: once in as many rounds as it takes, and one.
    assert evicted[0].count(7) == len(range(0, ROUNDS - STAGES, STAGES + 1))
    # What is still open stays promised.
    assert [terms[2] for terms in told[2]] == [1000 + number for number in range(ROUNDS)]
