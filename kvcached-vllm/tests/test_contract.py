"""What is said of a vLLM whose sources are not as they were."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcached_vllm import contract, sources

SCHEDULER = "v1/core/sched/scheduler.py"
MANAGER = "v1/core/kv_cache_manager.py"
PARALLEL = "config/parallel.py"
#: Which 0.9 has all in one file of configurations, or does not have.
ELSEWHERE_OR_NOWHERE = (
    *(PARALLEL, "config.py", "attention/selector.py"),
    "model_executor/layers/attention_layer_base.py",
)


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[str, str, str], list[str]]:
    """Breaks a copy of the installed vLLM's file by a regular expression; what is said then."""
    root = sources.installed()._root
    for folder in ("platforms", "config", "v1/core", "v1/worker", "distributed"):
        if (root / folder).exists():
            shutil.copytree(root / folder, tmp_path / folder, ignore=_all_but_sources)
    for file in ("v1/kv_cache_interface.py", "v1/request.py", *ELSEWHERE_OR_NOWHERE):
        if (root / file).exists():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / file, tmp_path / file)

    def change(path: str, pattern: str, replacement: str) -> list[str]:
        file = tmp_path / path
        if not file.exists() and path in ELSEWHERE_OR_NOWHERE:
            pytest.skip(f"{path} is elsewhere in this vLLM")
        text, times = re.subn(pattern, replacement, file.read_text())
        assert times, f"{path} has nothing like {pattern}"
        file.write_text(text)
        found = sources.Sources(tmp_path)
        return [*contract.broken(found), *contract.broken(found, "cuda")]

    return change


def _all_but_sources(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if not name.endswith(".py") and "." in name}


def test_the_installed_engine_is_as_it_should_be() -> None:
    found = sources.installed()
    assert contract.broken(found) == contract.broken(found, "cpu") == []
    # Which 0.9 does not have.
    assert all("kv_cache_memory_bytes" in line for line in contract.broken(found, "cuda"))


@pytest.mark.parametrize(
    ("path", "pattern", "replacement", "said"),
    [
        (
            "platforms/__init__.py",
            "builtin_platform_plugins",
            "known",
            "no builtin_platform_plugins",
        ),
        (PARALLEL, r"\bworker_cls\b", "worker", "ParallelConfig has no worker_cls"),
        (SCHEDULER, r"class Scheduler\b", "class Planner", "no class Scheduler"),
        (SCHEDULER, r"def schedule\(", "def plan(", "Scheduler has no method schedule()"),
        (SCHEDULER, r"\bfinished_status\b", "why", "finish_requests() has no parameter"),
        (SCHEDULER, r"self\.running\b", "self.active", "Scheduler has no running"),
        (
            "v1/core/kv_cache_coordinator.py",
            r"\bnew_computed_blocks\b",
            "hits",
            "get_num_blocks_to_allocate() has no parameter new_computed_blocks",
        ),
        (
            "v1/core/kv_cache_utils.py",
            r"def popleft\(",
            "def pop_many(self, n):\n        ...\n\n    def popleft(",
            "new method pop_many()",
        ),
        ("v1/core/block_pool.py", r"\bfree_block_queue\b", "free", "has no free_block_queue"),
        (
            "v1/core/block_pool.py",
            r"def \w*evict\w*\(",
            "def drop(",
            "BlockPool has no method evict_blocks()",
        ),
        (
            "v1/core/block_pool.py",
            r"def get_one_block\(",
            "def find(",
            "BlockHashToBlockMap has no method get_one_block()",
        ),
        (MANAGER, r"get_num_blocks_to_allocate\(", "blocks_for(", "looks at the free count"),
        ("v1/kv_cache_interface.py", r"\blayers: |\bshared_by: ", "names: ", "in a new way"),
        ("v1/worker/gpu_worker.py", r"def wake_up\(", "def wake(", "has no method wake_up()"),
    ],
)
def test_what_an_engine_has_changed_is_named(
    changed: Callable[[str, str, str], list[str]],
    path: str,
    pattern: str,
    replacement: str,
    said: str,
) -> None:
    lines = changed(path, pattern, replacement)
    assert any(said in line for line in lines), lines
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("file", "device"), [("cpu_attn", "cpu"), ("flash_attn", "cuda"), ("flashinfer", "cuda")]
)
def test_attention_that_arranges_its_cache_in_a_new_way_is_named(
    tmp_path: Path, file: str, device: str
) -> None:
    folder = tmp_path / "v1/attention/backends"
    folder.mkdir(parents=True)
    shape = "class Backend:\n    def get_kv_cache_shape(num_blocks):\n        return {}, 3\n"
    for outermost, named in (
        ("num_blocks, 2", False),
        ("2, num_blocks", False),
        ("2, block_size, num_blocks", True),
        ("block_size, num_blocks", True),
    ):
        (folder / f"{file}.py").write_text(shape.format(outermost))
        lines = contract.broken(sources.Sources(tmp_path), device)
        found = [line for line in lines if "the outermost dimension is not the block" in line]
        assert bool(found) == named, outermost


def test_an_allocation_that_is_made_another_way_is_named(
    changed: Callable[[str, str, str], list[str]],
) -> None:
    lines: list[str] = []
    for path in ("v1/worker/utils.py", "v1/worker/gpu_model_runner.py"):
        try:
            lines = changed(path, r"torch\.zeros\(", "torch.empty(")
        except AssertionError:
            continue
    assert any("no torch.zeros" in line for line in lines), lines
