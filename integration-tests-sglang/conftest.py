"""Fixtures: models, places for shared files, and engines of both kinds."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import engine
import tiny_llama
from engine import Outcome

ROOMY = ("mixed", "long_prompts", "aborts", "long_answer", "crowd", "release_and_resume", "flush")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.write(tmp_path_factory.mktemp("models"))


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
def run_elastic(
    new_shm_dir: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Outcome]:
    """Run scenarios on an engine that must be elastic and finish them all."""

    def run(
        model: Path,
        scenarios: tuple[str, ...],
        limits: dict[str, str] | None = None,
        **options: Any,
    ) -> Outcome:
        environment = {"KVCACHED_REQUIRED": "true", "KVCACHED_SHM_DIR": str(new_shm_dir())}
        outcome = engine.run(
            model,
            tmp_path_factory.mktemp("engine"),
            scenarios,
            {**environment, **(limits or {})},
            **options,
        )
        assert outcome.status == 0, outcome.log[-4000:]
        assert "kvcached: elastic KV cache" in outcome.log
        return outcome

    return run


@pytest.fixture(scope="session")
def vanilla(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """An engine without kvcached: the measure of all tokens."""
    where = tmp_path_factory.mktemp("engine")
    outcome = engine.run(model, where, ROOMY, {"ENABLE_KVCACHED": "false"})
    assert outcome.status == 0, outcome.log[-4000:]
    return outcome


@pytest.fixture(scope="session")
def roomy(model: Path, run_elastic: Callable[..., Outcome]) -> Outcome:
    """An elastic engine with more memory than its load needs."""
    return run_elastic(model, ROOMY, {"KVCACHED_MAX_CACHED_TOKENS": str(CACHED_TOKENS)})


#: The roomy engine's cap on finished prefixes.
CACHED_TOKENS = 1024
