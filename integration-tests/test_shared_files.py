"""The directory that engines share: leftovers of the dead, and places where none can be."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import elasticity
import engine
from engine import Outcome, Scenario
from test_startup import TWO, assert_refused, assert_vanilla


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_page_table_of_a_killed_engine_is_removed(
    model: Path, tmp_path: Path, new_shm_dir: Callable[[], Path]
) -> None:
    folder = new_shm_dir()
    settings = elasticity.elastic(folder)
    hold = [Scenario("wait_to_be_killed")]
    with engine.start(model, hold, settings, tmp_path / "report.json") as first:
        assert first.stdout is not None
        log = []
        for line in first.stdout:
            log.append(line)
            if "waiting to be killed" in line:
                break
        left_behind = _files(folder)
        engine.kill(first)
    assert left_behind, "no file of an elastic engine; its log:\n" + "".join(log[-20:])
    assert left_behind <= _files(folder), "a killed process cannot have cleaned up"

    outcome = engine.run(model, TWO, settings)
    assert outcome.finished, outcome.last_lines()
    assert _files(folder) == set(), "the second engine cleaned up behind both"


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount small file systems in memory, where we may."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        target = tmp_path / f"tmpfs-{len(mounted)}"
        target.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(target)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a tmpfs takes a privilege that this process does not have")
        mounted.append(target)
        return target

    yield mount
    for target in mounted:
        subprocess.run(["umount", "--lazy", str(target)], check=False)


def _run_in(model: Path, folder: Path) -> Outcome:
    settings = {**elasticity.elastic(folder), "KVCACHED_REQUIRED": "false"}
    return engine.run(model, TWO, settings)


@pytest.mark.slow
def test_a_directory_that_cannot_be_made_leaves_the_engine_vanilla(
    model: Path, tmp_path: Path, roomy_vanilla: Outcome
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "not-a-directory"
    assert_vanilla(_run_in(model, folder), str(folder), roomy_vanilla)


@pytest.mark.slow
def test_a_directory_that_cannot_be_made_is_refused_where_elastic_is_required(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "not-a-directory"
    assert_refused(engine.run(model, TWO, elasticity.elastic(folder)), str(folder))


@pytest.mark.slow
def test_a_read_only_directory_leaves_the_engine_vanilla(
    model: Path, tmpfs: Callable[[str], Path], roomy_vanilla: Outcome
) -> None:
    folder = tmpfs("ro,size=1m")
    assert_vanilla(_run_in(model, folder), str(folder), roomy_vanilla)


def test_a_full_directory_leaves_the_engine_vanilla(
    model: Path, tmpfs: Callable[[str], Path], roomy_vanilla: Outcome
) -> None:
    """A sparse file on a full file system kills its writer with SIGBUS, and much later."""
    folder = tmpfs("size=64k")
    with contextlib.suppress(OSError):
        (folder / "filling").write_bytes(bytes(128 * 1024))
    assert_vanilla(_run_in(model, folder), str(folder), roomy_vanilla)
