"""Fixtures: the models, places for shared files, and engines of both kinds."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import elasticity
import engine
import tiny_model
from engine import Outcome, Scenario
from kinds import Case, Notebook

ROOMY = (
    Scenario("mixed_lengths"),
    Scenario("shared_prefixes"),
    Scenario("long_prompt_in_chunks"),
    Scenario("several_answers"),
    Scenario("abort_half"),
    Scenario("reset_prefix_cache"),
    Scenario("long_answer"),
)


@dataclass(frozen=True)
class Pair:
    """The same scenarios on two engines that differ in nothing but kvcached."""

    vanilla: Outcome
    elastic: Outcome

    @classmethod
    def run(cls, vanilla: Callable[[], Outcome], elastic: Callable[[], Outcome]) -> Pair:
        """Run both at once: an engine computes on one core, and starts on one."""
        with ThreadPoolExecutor(2) as at_once:
            sides = [at_once.submit(side) for side in (vanilla, elastic)]
            return cls(*(side.result() for side in sides))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--vanilla-both-sides",
        action="store_true",
        help="compare vanilla with itself: do not object when an engine is not elastic",
    )
    parser.addoption(
        "--kinds-results",
        metavar="FILE",
        help="write what came of test_kinds.py and test_features.py into this file",
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models are written."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Iterator[Callable[[Case, str], None]]:
    """Put a case into the table of docs/compatibility.md, if the test passes."""
    notebook = Notebook(request)
    yield notebook.note
    notebook.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tiny_model.FULL_ATTENTION, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def window_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tiny_model.SLIDING_WINDOW, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def new_shm_dir() -> Iterator[Callable[[], Path]]:
    """Make empty directories for an engine's shared files, in memory where possible."""
    shm = Path("/dev/shm")
    parent = shm if os.access(shm, os.W_OK) else None
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="kvcached-tests-", dir=parent)))
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def require_elastic(request: pytest.FixtureRequest) -> Callable[[str, Mapping[str, int]], None]:
    """Fail clearly where an engine that must be elastic is vanilla.

    Without this every comparison would pass on a machine where kvcached is not installed.
    """
    tolerant = bool(request.config.getoption("--vanilla-both-sides"))

    def check(log: str, memory: Mapping[str, int]) -> None:
        reason = elasticity.not_attached(log, memory)
        if reason and not tolerant:
            pytest.fail(reason, pytrace=False)

    return check


@pytest.fixture(scope="session")
def run_elastic(
    new_shm_dir: Callable[[], Path],
    require_elastic: Callable[[str, Mapping[str, int]], None],
) -> Callable[..., Outcome]:
    """Run scenarios on an elastic engine that finishes them all.

    `limits` are KVCACHED_ settings, `settings` are the rest of the environment.
    """

    def run(
        model: Path,
        scenarios: Sequence[Scenario],
        limits: Mapping[str, str | int] | None = None,
        settings: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Outcome:
        surroundings = elasticity.elastic(new_shm_dir(), **(limits or {}))
        outcome = engine.run(model, scenarios, {**surroundings, **(settings or {})}, **options)
        if "memory" in outcome.report:
            require_elastic(outcome.log, outcome.report["memory"])
        assert outcome.finished, outcome.last_lines()
        return outcome

    return run


@pytest.fixture(scope="session")
def run_vanilla() -> Callable[..., Outcome]:
    """Run scenarios on an engine without kvcached that finishes them all."""

    def run(
        model: Path,
        scenarios: Sequence[Scenario],
        settings: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Outcome:
        surroundings = {**elasticity.vanilla(), **(settings or {})}
        outcome = engine.run(model, scenarios, surroundings, **options)
        assert outcome.finished, outcome.last_lines()
        return outcome

    return run


@pytest.fixture(scope="session")
def roomy(
    model: Path, run_vanilla: Callable[..., Outcome], run_elastic: Callable[..., Outcome]
) -> Pair:
    """An engine with more blocks than its load needs twice, the elastic one with default
    settings."""
    return Pair.run(lambda: run_vanilla(model, ROOMY), lambda: run_elastic(model, ROOMY))


@pytest.fixture(scope="session")
def roomy_vanilla(roomy: Pair) -> Outcome:
    """The vanilla one of them: the measure of all tokens."""
    return roomy.vanilla
