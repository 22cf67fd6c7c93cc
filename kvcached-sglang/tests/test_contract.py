"""What we ask of the installed SGLang, seam by seam: whatever breaks one is told which."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest.importorskip("sglang")

import kvcached_sglang
from kvcached_sglang import contract, versions

LAUNCHED = versions.needs_launcher(kvcached_sglang.installed_sglang() or "")
hooked = pytest.mark.skipif(LAUNCHED, reason="this SGLang has no plugins")


@pytest.mark.parametrize("seam", contract.seams(LAUNCHED), ids=lambda seam: seam.name)
def test_a_seam_is_where_it_should_be(seam: contract.Seam) -> None:
    assert seam.wrong() is None


@hooked
def test_what_an_engine_has_changed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.mem_cache import allocator

    monkeypatch.delattr(Scheduler, "get_next_batch_to_run")
    assert any("get_next_batch_to_run" in line for line in contract.broken(LAUNCHED))
    monkeypatch.undo()
    monkeypatch.delattr(allocator, "PagedTokenToKVPoolAllocator")
    lines = contract.broken(LAUNCHED)
    assert any(line.startswith("an allocator's free pages: ") for line in lines), lines
    assert all("\n" not in line for line in lines)


@hooked
def test_a_method_that_takes_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

    monkeypatch.setattr(TokenToKVPoolAllocator, "alloc", lambda self, pages: None)
    (line,) = contract.broken(LAUNCHED)
    assert line.startswith("the places of our hooks: ")
    assert line.endswith("TokenToKVPoolAllocator.alloc() takes pages")


def test_we_bring_no_platform_so_that_no_second_one_is_active() -> None:
    groups = ("sglang.srt.platforms", "sglang.srt.plugins")
    ours = [
        point
        for group in groups
        for point in entry_points(group=group)
        if point.value.startswith("kvcached_sglang")
    ]
    assert [(point.group, point.name) for point in ours] == [("sglang.srt.plugins", "kvcached")]


@hooked
def test_two_active_platforms_of_others_are_refused_by_sglang(tmp_path: Path) -> None:
    platforms = importlib.import_module("sglang.srt.platforms")
    group = json.dumps(importlib.import_module("sglang.srt.plugins").PLATFORM_PLUGINS_GROUP)
    assert platforms is not None
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text("def activate():\n    return 'no_such.Platform'\n")
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{json.loads(group)}]\n{name} = {name}:activate\n")
    code = "from sglang.srt.platforms import current_platform as p; p.device_name"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "SGLANG_PLATFORM" in done.stderr.splitlines()[-1]
