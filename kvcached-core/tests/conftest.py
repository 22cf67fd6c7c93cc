"""Fixtures: a place for rows, an environment without settings, and caches over real memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from miniature import Cache


@pytest.fixture
def shm_dir() -> Iterator[Path]:
    """An empty directory in memory where there is one."""
    shm = Path("/dev/shm")
    made = Path(
        tempfile.mkdtemp(prefix="kvcached-tests-", dir=shm if os.access(shm, os.W_OK) else None)
    )
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which no variable of ours is set."""
    for name in list(os.environ):
        if name.startswith("KVCACHED_") or name == "ENABLE_KVCACHED":
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def open_cache(shm_dir: Path) -> Iterator[Callable[..., Cache]]:
    """Opens caches, closed at the end."""
    opened: list[Cache] = []

    def open_one(name: str = "engine.0.row", **options: Any) -> Cache:
        opened.append(Cache(str(shm_dir / name), **options))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()
