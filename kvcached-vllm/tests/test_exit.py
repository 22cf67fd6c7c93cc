"""A process that ends without shutting its engine down ends as Python ends it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: An idle engine whose bell rings all the time, so that its thread is on its way back from native
#: code whenever Python takes itself down.
_PROGRAM = """
import sys
import threading
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_changed_limits import IdleEngine

engine = IdleEngine(Path({folder!r}))

def ring():
    while True:
        engine.supply.pool.ring()

threading.Thread(target=ring, daemon=True).start()
raise RuntimeError("the engine was not shut down")
"""


@pytest.mark.parametrize("attempt", range(3))
def test_an_engine_that_was_not_shut_down_ends_with_the_exceptions_status(
    tmp_path: Path, attempt: int
) -> None:
    program = _PROGRAM.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert "the engine was not shut down" in ended.stderr
    assert "terminate called" not in ended.stderr
    assert ended.returncode == 1, ended.stderr
