"""Ranks never decide otherwise, whenever each of them gets and loses its memory.

A seed chooses what comes in, how much each device has, when its pager acts, when its batches end,
what a neighbour takes there, what the clock says to whoever asks, and in which order the ranks go
on. The ledgers' own clocks run as always.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("greenlet")

from simulated_device import PatientPool
from simulated_ranks import Diverged, SimulatedRanks

from kvcached_sglang import hybrid_keeper, keeper
from kvcached_sglang.agreement import Agreement, Terms
from kvcached_sglang.hybrid_keeper import WindowKeeper
from kvcached_sglang.keeper import MemoryKeeper
from kvcached_sglang.needs import Needs
from kvcached_sglang.page_supply import PageSupply

SCHEDULES = int(os.environ.get("SCHEDULES", "1000"))
SHARES = 20


def no_clock(seed: int) -> SimpleNamespace:
    """A ``time`` in which no two looks agree, on one rank or on two."""
    dice = random.Random(seed)
    now = 0.0

    def monotonic() -> float:
        nonlocal now
        now += dice.random() * 0.2
        return now

    return SimpleNamespace(monotonic=monotonic)


def run(seeds: range, agree: type[Agreement] = Agreement, windows: bool = False) -> Counter[str]:
    """Runs schedules; returns how often what happened in them."""
    happened: Counter[str] = Counter()
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="kvcached-tests-", dir=in_memory) as where:
        for seed in seeds:
            with mock.patch.object(keeper, "time", no_clock(seed)):
                ranks = SimulatedRanks(Path(where), seed, agree, windows)
                ranks.run()
            happened += ranks.happened
    return happened


def test_four_ranks_never_diverge() -> None:
    share = SCHEDULES // SHARES
    seeds = [range(first, first + share) for first in range(0, SCHEDULES, share)]
    # Forked: PyTorch takes longer to load than a hundred schedules to run.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as processes:
        happened = sum(processes.map(run, seeds), Counter[str]())
    # All that ranks could differ in has happened, and often.
    for what in ("begins", "goes on", "takes", "evicts", "retracts", "ends", "rests"):
        assert happened[what] > SCHEDULES // 20, happened
    # Offers are such that this is rare.
    assert happened["waits"] > 0, happened


def test_four_ranks_never_diverge_over_windows_and_no_prompt_that_is_half_in_lacks_any() -> None:
    happened = run(range(SCHEDULES // 5), windows=True)
    for what in ("begins", "goes on", "takes", "leaves", "ends"):
        assert happened[what] > SCHEDULES // 100, happened


class Alone(Agreement):
    """Ranks that tell each other their offers and keep to their own."""

    def settle(self, own: Terms) -> Terms:
        super().settle(own)
        return own


class Hasty(Agreement):
    """Ranks that drop what they owe, whatever the others do."""

    def settle(self, own: Terms) -> Terms:
        return Terms(super().settle(own).pages, own.evict)


@pytest.mark.parametrize("broken", [Alone, Hasty])
def test_ranks_that_do_not_agree_are_found_out(broken: type[Agreement]) -> None:
    with pytest.raises(Diverged, match="seed"):
        run(range(300), broken)


def test_a_rank_that_shows_its_own_memory_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    has_memory = property(lambda supply: supply.pool.num_free)
    monkeypatch.setattr(PageSupply, "available_tokens", has_memory)
    # They part, or one of them takes what it does not have.
    with pytest.raises(AssertionError):
        run(range(300))


#: How an engine ends that has no memory for a batch that was formed.
OUT_OF_MEMORY = r"no \d+ pages, \d+ available|granted and are not there"


def test_prompts_that_are_half_in_without_memory_for_the_rest_are_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only_the_batch = property(lambda needs: needs.decode + needs.prefill)
    monkeypatch.setattr(Needs, "next_batch", only_the_batch)
    with pytest.raises(AssertionError, match=OUT_OF_MEMORY):
        run(range(300))


def two_chunks(scheduler: Any, needs: Needs, page_size: int) -> Needs:
    """Memory for two chunks of a prompt ahead, and not for all that a window holds."""
    rest = min(needs.rest, needs.prefill)
    return replace(needs, rest=rest, half_in=needs.chunk)


def test_windows_that_have_memory_for_two_chunks_alone_are_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hybrid_keeper, "needs_of_windows", two_chunks)
    with pytest.raises(AssertionError, match=OUT_OF_MEMORY):
        run(range(300), windows=True)


def test_windows_of_a_prompt_that_is_begun_by_its_first_chunk_alone_are_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(WindowKeeper, "_own_terms", MemoryKeeper._own_terms)
    with pytest.raises(AssertionError, match=OUT_OF_MEMORY):
        run(range(300), windows=True)


def test_memory_that_leaves_though_it_was_promised_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PatientPool, "promise", lambda pool, pages: None, raising=False)
    with pytest.raises(AssertionError, match=OUT_OF_MEMORY):
        run(range(300))
