"""With data-parallel attention those ranks agree that share their requests, and no others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sglang")
pytest.importorskip("sglang.srt.plugins", reason="this SGLang has no plugins")


def test_ranks_settle_with_those_that_share_their_requests(tmp_path: Path) -> None:
    program = str(Path(__file__).with_name("attention_groups.py"))
    out = [tmp_path / f"{rank}.json" for rank in range(4)]
    processes = [
        subprocess.Popen([sys.executable, program, str(rank), str(tmp_path / "store"), str(where)])
        for rank, where in enumerate(out)
    ]
    assert [process.wait(300) for process in processes] == [0] * 4
    found = [json.loads(where.read_text()) for where in out]
    assert found == [[2, 10, 5], [2, 10, 5], [2, 12, 15], [2, 12, 15]]
