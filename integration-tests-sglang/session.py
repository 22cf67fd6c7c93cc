"""One SGLang engine's life in a process of its own: starts it, runs scenarios, writes what came.

    python session.py ORDER.json OUTCOME.json

Started by engine.py. Everything a test judges is in the outcome; nothing is judged here.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "integration-tests"))

import kv_memory
import kvcached_sglang
import neighbour
import scenarios
from kvcached_sglang import launched, versions


class Peak(threading.Thread):
    """The most memory that this process's engine held while it ran."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._seen: list[tuple[float, int]] = []
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.05):
            resident = kv_memory.of_tree(os.getpid()).resident
            self._seen.append((time.monotonic(), resident))

    def stop(self) -> int:
        """The most until now, or until the neighbour left: what follows is the engine's."""
        self._done.set()
        self.join()
        end = neighbour.left_at or math.inf
        return max((resident for when, resident in self._seen if when <= end), default=0)


def _engine_class() -> Any:
    """SGLang's; before it had plugins, with the scheduler's process that our launcher passes."""
    from sglang.srt.entrypoints.engine import Engine

    if not versions.needs_launcher(version("sglang")) or not kvcached_sglang.enabled():
        return Engine
    launched.clean_up_at_exit()
    process = staticmethod(launched.run_scheduler_process)
    return type("ElasticEngine", (Engine,), {"run_scheduler_process_func": process})


def run(order: dict[str, Any]) -> dict[str, Any]:
    engine = _engine_class()(**order["arguments"])
    outcome: dict[str, Any] = {"start": kv_memory.of_tree(os.getpid()).as_dict(), "scenarios": []}
    for name in order["scenarios"]:
        peak = Peak()
        neighbour.left_at = None
        peak.start()
        started = time.monotonic()
        answers = getattr(scenarios, name)(engine)
        seconds = time.monotonic() - started
        held = peak.stop()
        time.sleep(1.0)  # the promise is kept within this
        after = kv_memory.of_tree(os.getpid()).as_dict()
        outcome["scenarios"].append(
            {"answers": answers, "peak": held, "after": after, "seconds": seconds}
        )
    engine.shutdown()
    return outcome


if __name__ == "__main__":
    order_path, outcome_path = map(Path, sys.argv[1:])
    outcome = run(json.loads(order_path.read_text()))
    outcome_path.write_text(json.dumps(outcome))
