"""Two ranks in two processes settle on one number."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed, multiprocessing

from kvcached_sglang.agreement import Agreement, Terms, least_of


def _rank(rank: int, store: str, out: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = Agreement(least_of(distributed.group.WORLD), 2).settle(
        Terms(pages=10 + rank, evict=5 * rank)
    )
    torch.save([found.pages, found.evict], f"{out}.{rank}")


def test_ranks_settle_on_the_fewest_pages_and_the_most_to_evict(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, args=(str(tmp_path / "store"), str(tmp_path / "out")), nprocs=2)
    assert [torch.load(tmp_path / f"out.{rank}") for rank in range(2)] == [[10, 5], [10, 5]]


def test_a_rank_alone_asks_nobody() -> None:
    terms = Terms(3, 4)
    assert Agreement(None, 1).settle(terms) is terms
