"""Memory follows the load, and what is not committed cannot be read. Seen from /proc."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import elasticity
import engine
from conftest import Pair
from engine import Outcome, Scenario
from footprint import Geometry

TOUCHES = (Scenario("touch_committed_block"), Scenario("touch_uncommitted_block"))


@pytest.fixture(scope="module")
def forgetful(model: Path, run_elastic: Callable[..., Outcome]) -> Outcome:
    """An engine that keeps no freed prefixes: its memory is its live blocks and its slack."""
    return run_elastic(
        model, [Scenario("grow_and_shrink")], limits={"KVCACHED_MAX_CACHED_TOKENS": 0}
    )


def test_an_engine_that_has_served_nothing_holds_almost_nothing(forgetful: Outcome) -> None:
    geometry = Geometry.from_report(forgetful.report)
    memory = forgetful.report["memory"]
    assert memory["resident"] <= geometry.idle_bound(cached_tokens=0)


def test_what_is_not_committed_is_reserved_without_access(forgetful: Outcome) -> None:
    geometry = Geometry.from_report(forgetful.report)
    memory = forgetful.report["memory"]
    whole = forgetful.report["num_blocks"] * geometry.block_bytes
    assert memory["mapped"] + memory["reserved"] >= whole


def test_under_load_memory_is_that_of_the_live_blocks_and_the_slack(forgetful: Outcome) -> None:
    geometry = Geometry.from_report(forgetful.report)
    samples = forgetful.result("grow_and_shrink")["samples"]
    assert len(samples) > 20
    assert max(sample["live"] for sample in samples) > 400, "the load never grew"
    over = [each for each in samples if each["resident"] > geometry.load_bound(each["live"])]
    assert over == [], f"{len(over)} of {len(samples)} samples hold too much"


def test_a_live_block_always_has_memory(forgetful: Outcome) -> None:
    """The other side of the bound: a reader of smaps that saw nothing would pass it."""
    geometry = Geometry.from_report(forgetful.report)
    fullest = max(forgetful.result("grow_and_shrink")["samples"], key=lambda each: each["live"])
    # Blocks reserved for tokens still to come are committed but not written, so not resident.
    assert fullest["resident"] > 0.5 * fullest["live"] * geometry.block_bytes


def test_one_second_after_the_last_request_only_the_slack_remains(forgetful: Outcome) -> None:
    geometry = Geometry.from_report(forgetful.report)
    left = forgetful.result("grow_and_shrink")["memory_one_second_later"]
    assert left["resident"] <= geometry.idle_bound(cached_tokens=0)


def test_one_second_after_the_last_request_the_capped_prefix_cache_remains(roomy: Pair) -> None:
    geometry = Geometry.from_report(roomy.elastic.report)
    left = roomy.elastic.result("mixed_lengths")["memory_one_second_later"]
    assert 0 < left["resident"] <= geometry.idle_bound()


def test_reading_uncommitted_memory_ends_the_worker(
    model: Path,
    new_shm_dir: Callable[[], Path],
    require_elastic: Callable[[str, dict[str, int]], None],
) -> None:
    outcome = engine.run(model, TOUCHES, elasticity.elastic(new_shm_dir()))
    require_elastic(outcome.log, outcome.report.get("memory", {"mappings": 0}))
    outcome.result("touch_committed_block")  # Block 0 is always there.
    assert "touching the last block" in outcome.log
    assert outcome.returncode == -signal.SIGSEGV


def test_a_vanilla_worker_may_read_any_block(
    model: Path, run_vanilla: Callable[..., Outcome]
) -> None:
    """What the test above leans on: nothing else makes that read fail."""
    run_vanilla(model, TOUCHES)
