"""The same few checks for every version of vLLM: `nox -s matrix`.

Three engines a version, small enough to be run with all of them: the plugin is found, the engine is
elastic, answers as vanilla does, takes memory by demand and gives it back, and leaves nothing
behind. Where a version has changed what it is built on, the seams' own test names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import elasticity
import engine
from comparison import assert_same
from conftest import Pair
from engine import Outcome, Scenario
from footprint import Geometry

contract = pytest.importorskip("kvcached_vllm.contract", reason="kvcached-vllm is not installed")
sources = pytest.importorskip("kvcached_vllm.sources", reason="kvcached-vllm is not installed")

pytestmark = pytest.mark.contract

WITH_TOKENS = (
    Scenario("mixed_lengths", {"requests": 20}),
    Scenario("shared_prefixes"),
    Scenario("abort_half"),
)
SCENARIOS = (*WITH_TOKENS, Scenario("reset_prefix_cache"))
UNDER_A_LIMIT = (WITH_TOKENS[0], WITH_TOKENS[-1])
LOAD = Scenario("grow_and_shrink", {"requests": 16})

# Half of what the 20 requests want at once.
LIMIT = "16MiB"

CPU = engine.cpu_surroundings()
OTHER_CPU = engine.cpu_surroundings(place=1)


@pytest.fixture(scope="module")
def directory(new_shm_dir: Callable[[], Path]) -> Path:
    return new_shm_dir()


@pytest.fixture(scope="module")
def both(model: Path, run_vanilla: Callable[..., Outcome], directory: Path) -> Pair:
    surroundings = elasticity.elastic(directory, KVCACHED_MAX_CACHED_TOKENS=3200)
    return Pair.run(
        lambda: run_vanilla(model, SCENARIOS, CPU),
        lambda: engine.run(model, (*SCENARIOS, LOAD), {**surroundings, **OTHER_CPU}),
    )


@pytest.fixture(scope="module")
def vanilla(both: Pair) -> Outcome:
    return both.vanilla


@pytest.fixture(scope="module")
def elastic(both: Pair) -> Outcome:
    assert both.elastic.finished, both.elastic.last_lines()
    return both.elastic


@pytest.fixture(scope="module")
def limited(model: Path, run_elastic: Callable[..., Outcome]) -> Outcome:
    """An engine that must preempt, with every step looked at before it runs."""
    limits = {"KVCACHED_LIMIT": LIMIT, "KVCACHED_SANITY_CHECK": "true"}
    return run_elastic(model, UNDER_A_LIMIT, limits, CPU, max_model_len=2048)


@pytest.mark.parametrize("seam", contract.SEAMS, ids=lambda seam: seam.name)
def test_the_contract_holds(seam: Any) -> None:
    assert seam.check(sources.installed()) is None


def test_the_plugin_is_found_and_the_engine_is_elastic(elastic: Outcome) -> None:
    assert elasticity.not_attached(elastic.log, elastic.report["memory"]) is None
    assert len(elasticity.start_lines(elastic.log)) == 1
    assert elasticity.vanilla_lines(elastic.log) == []


@pytest.mark.parametrize("scenario", [scenario.name for scenario in WITH_TOKENS])
def test_it_answers_as_vanilla_does(vanilla: Outcome, elastic: Outcome, scenario: str) -> None:
    expected, actual = (side.result(scenario)["tokens"] for side in (vanilla, elastic))
    assert expected
    assert_same(_in_order(expected), _in_order(actual))


def test_prefixes_are_found_and_forgotten_as_in_vanilla(vanilla: Outcome, elastic: Outcome) -> None:
    for side in (vanilla, elastic):
        first, again, forgotten = side.result("reset_prefix_cache")["rounds"]
        assert again["cached_tokens"] > 0 == forgotten["cached_tokens"]
        assert first["tokens"] == again["tokens"] == forgotten["tokens"]
    assert_same(
        [each["tokens"] for each in vanilla.result("reset_prefix_cache")["rounds"]],
        [each["tokens"] for each in elastic.result("reset_prefix_cache")["rounds"]],
    )


def test_memory_grows_with_the_load(elastic: Outcome) -> None:
    geometry = Geometry.from_report(elastic.report)
    samples = elastic.result("grow_and_shrink")["samples"]
    assert max(sample["live"] for sample in samples) > 80, "the load never grew"
    over = [
        each
        for each in samples
        if each["resident"] > geometry.load_bound(each["live"]) + _cached(geometry)
    ]
    assert over == [], f"{len(over)} of {len(samples)} samples hold too much"
    fullest = max(samples, key=lambda each: int(each["live"]))
    assert fullest["resident"] > 0.5 * fullest["live"] * geometry.block_bytes


def test_memory_shrinks_after_it(elastic: Outcome) -> None:
    geometry = Geometry.from_report(elastic.report)
    left = elastic.result("grow_and_shrink")["memory_one_second_later"]
    assert 0 < left["resident"] <= geometry.idle_bound(cached_tokens=3200)


def test_every_block_comes_back(elastic: Outcome) -> None:
    for scenario in SCENARIOS:
        assert elastic.result(scenario.name)["blocks_after"]["live"] == 0


def test_it_ends_without_a_complaint_and_leaves_nothing(
    vanilla: Outcome, elastic: Outcome, directory: Path
) -> None:
    assert elastic.returncode == 0
    assert _complaints_beside(vanilla, elastic) == []
    assert list(directory.glob("*.row")) == []


@pytest.mark.parametrize("scenario", [scenario.name for scenario in UNDER_A_LIMIT])
def test_under_a_limit_it_still_answers_as_vanilla_does(
    vanilla: Outcome, limited: Outcome, scenario: str
) -> None:
    expected, actual = (side.result(scenario)["tokens"] for side in (vanilla, limited))
    assert_same(_in_order(expected), _in_order(actual))


def test_the_limit_was_felt_and_nothing_broke(vanilla: Outcome, limited: Outcome) -> None:
    assert limited.result("mixed_lengths")["preemptions"] > 0
    assert _complaints_beside(vanilla, limited) == []


def _complaints_beside(vanilla: Outcome, other: Outcome) -> list[str]:
    """What another engine complains of, and vanilla does not: workers of 0.20 fail as they stop on
    a machine without an accelerator, kvcached or not."""
    ours, theirs = (
        Counter(line.partition(")")[2] or line for line in elasticity.complaints(side.log))
        for side in (other, vanilla)
    )
    return list((ours - theirs).elements())


def _cached(geometry: Geometry) -> int:
    return 3200 // geometry.block_tokens * geometry.block_bytes


def _in_order(tokens: Any) -> list[Any]:
    # Aborted requests leave a dictionary without them.
    return sorted(tokens.items()) if isinstance(tokens, dict) else list(tokens)
