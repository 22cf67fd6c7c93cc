"""An engine's process, as benchmarks.solo starts and watches it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks import engines
from benchmarks.engines import EngineFailed
from benchmarks.meters import Meter
from benchmarks.solo_run import Run
from benchmarks.solo_turns import RunnerSide

#: The programs in an engine's process.
PROGRAMS = {"vllm": "benchmarks.solo_engine", "sglang": "benchmarks.solo_sglang"}


class EngineProcess:
    """An engine that was started, with a directory and a log of its own. Use it as a context
    manager: leaving it ends the engine, whatever state it is in."""

    def __init__(
        self,
        serving: str,
        order: dict[str, Any],
        variables: dict[str, str],
        directory: Path,
        log: Path,
        patience: float,
    ) -> None:
        directory.mkdir(exist_ok=True)
        rows = directory / "rows"
        self._report = directory / "report.json"
        self._report.unlink(missing_ok=True)
        self._order, self._log, self._patience = order, log, patience
        reading, writing = os.pipe()
        told = {**order, "report": str(self._report), "turns": writing}
        self._started = time.time()
        self._process = engines.start(
            [sys.executable, "-m", PROGRAMS[serving], json.dumps(told)],
            engines.environment(rows, variables),
            log,
            stdin=subprocess.PIPE,
            pass_fds=[writing],
        )
        os.close(writing)
        assert self._process.stdin is not None
        self._turns = RunnerSide(self._process.stdin, reading)
        self._meter = Meter([self._process.pid], rows)
        self._meter.start()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._meter.stop()
        engines.end_group(self._process)
        self._turns.close()
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def wait_until_ready(self) -> None:
        """Raises EngineFailed where it does not become so."""
        self._wait()

    def play(self) -> None:
        """Lets it play its next phase, and returns when it has. Raises EngineFailed."""
        with suppress(BrokenPipeError):  # what it died of is in its log
            self._turns.let()
        self._wait()

    def skip(self) -> None:
        """Lets it play nothing more."""
        with suppress(BrokenPipeError):
            self._turns.end()

    def finish(self) -> Run:
        """What it reported, once it has ended by itself. Raises EngineFailed."""
        try:
            status: int | str = self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            status = f"nothing after {self._patience:.0f} s"
        self._meter.stop()
        if status != 0 or not self._report.exists():
            raise self._failure(f"ended with {status}")
        report = {
            **json.loads(self._report.read_text()),
            "ranks": ranks_of(self._order["engine"]),
        }
        return Run(self._started, report, self._meter.readings)

    def _wait(self) -> None:
        if not self._turns.wait(self._patience):
            raise self._failure(f"ended, or took more than {self._patience:.0f} s")

    def _failure(self, what: str) -> EngineFailed:
        return EngineFailed(f"the engine {what}:\n{engines.last_lines(self._log)}")


def ranks_of(engine: Mapping[str, Any]) -> int:
    """How many ranks an engine with these arguments has, a device each on a machine with GPUs."""
    return int(engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1))


def phases_of(order: Mapping[str, Any]) -> int:
    """How many phases an engine with this order plays."""
    steady: int = order["steady_rounds"] if order["rate"] else 0
    return _uncounted(order) + int(order["rounds"]) + steady


def may_end_after(order: Mapping[str, Any], phases: int) -> bool:
    """Whether what was played says something: two rounds of each kind together, or four."""
    counted = phases - _uncounted(order)
    return counted >= 2 and counted % 2 == 0


def _uncounted(order: Mapping[str, Any]) -> int:
    return 1 + bool(order["ramp"]) + 1
