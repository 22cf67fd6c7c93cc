"""Starts one engine in a process of its own, lets it run scenarios, and brings back what it saw.

An engine takes seconds to start, so one process runs many scenarios (see `scenarios/`) and
the tests compare what several such processes brought back.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

# Small, exact, and the same for every engine unless a test says otherwise. 32 tokens is the
# smallest block that vLLM's CPU attention takes; one then fills half a granule of a layer,
# so that neighbours share extents. 256 MiB hold 2,048 such blocks of the tiny models.
OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "seed": 0,
    "block_size": 32,
    "max_model_len": 8192,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 512,
    "kv_cache_memory_bytes": 256 * 1024 * 1024,
    "disable_log_stats": False,
}

# One engine thread, unpinned: other engines, and other tests, share these cores.
_QUIET = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}

# The scheduler and the worker in the process that we start: quicker, and its block pool can
# be looked into. The default is vLLM's own: one process each.
IN_ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
IN_MANY_PROCESSES = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


def cpu_surroundings(place: int = 0) -> dict[str, str]:
    """What an engine on a CPU wants beside its options where its version is not the usual one.

    Up to 0.19 the CPU worker knows no `kv_cache_memory_bytes`: whole GiB bound the cache there. In
    0.20 a worker that is bound to no core fails (v1 utils/ompmultiprocessing.py). `place`: which of
    the cores that there are.
    """
    cores = sorted(os.sched_getaffinity(0))
    core = cores[place % len(cores)]
    return {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": str(core)}


@dataclass(frozen=True)
class Scenario:
    """A function of `scenarios/`, by name, and its arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What one engine process left: its exit status, its log, and its scenarios' results."""

    returncode: int
    log: str
    report: dict[str, Any]
    seconds: float

    @property
    def finished(self) -> bool:
        return self.returncode == 0 and "memory" in self.report

    def result(self, scenario: str) -> dict[str, Any]:
        """Return one scenario's result, or fail with the end of the log."""
        results: dict[str, dict[str, Any]] = self.report.get("results", {})
        assert scenario in results, (
            f"the engine ended with {self.returncode} before {scenario}:\n{self.last_lines()}"
        )
        return results[scenario]

    def results_of(self, scenario: str) -> dict[str, Any] | None:
        """Return one scenario's result, or None where the engine did not come so far."""
        results: dict[str, dict[str, Any]] = self.report.get("results", {})
        return results.get(scenario)

    def last_lines(self, count: int = 40) -> str:
        return "\n".join(self.log.splitlines()[-count:])


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with nothing of vLLM's or kvcached's but `settings`."""
    ours = ("VLLM_", "KVCACHED_", "ENABLE_KVCACHED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, **_QUIET, **settings}


def run(
    model: Path,
    scenarios: Sequence[Scenario],
    settings: Mapping[str, str],
    timeout: float = 300,
    **options: Any,
) -> Outcome:
    """Run scenarios in a fresh engine process; `options` are arguments of `vllm.LLM`."""
    with tempfile.TemporaryDirectory(prefix="kvcached-engine-") as folder:
        report = Path(folder) / "report.json"
        started = time.monotonic()
        with start(model, scenarios, settings, report, **options) as process:
            log = _finish(process, timeout)
        return Outcome(
            returncode=process.returncode,
            log=log,
            report=json.loads(report.read_text()) if report.exists() else {},
            seconds=time.monotonic() - started,
        )


def start(
    model: Path,
    scenarios: Sequence[Scenario],
    settings: Mapping[str, str],
    report: Path,
    **options: Any,
) -> subprocess.Popen[str]:
    """Start an engine process, in a process group of its own, without waiting for it."""
    order = {
        "options": {**OPTIONS, "model": str(model), **options},
        "scenarios": [[scenario.name, scenario.arguments] for scenario in scenarios],
        "report": str(report),
    }
    return subprocess.Popen(
        [sys.executable, str(HERE / "offline.py"), json.dumps(order)],
        env=environment({**IN_ONE_PROCESS, **settings}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """Kill an engine and all its processes at once, as the kernel's memory killer would."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _finish(process: subprocess.Popen[str], timeout: float) -> str:
    try:
        log, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        log, _ = process.communicate()
        log += f"\nThe tests killed this engine: it was not done after {timeout:.0f} s."
    finally:
        kill(process)  # What a crashed engine leaves behind would disturb the next one.
    return log
