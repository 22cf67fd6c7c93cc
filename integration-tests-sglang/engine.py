"""Runs one SGLang engine in a process of its own and collects what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

#: A machine that shares two cores with others starts an engine in a minute.
PATIENCE = 400

ARGUMENTS: dict[str, Any] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "skip_tokenizer_init": True,
    "dtype": "float32",
    "mem_fraction_static": 0.5,
    "max_total_tokens": 8192,
    "max_running_requests": 16,
    "chunked_prefill_size": 256,
    "disable_cuda_graph": True,
    "log_level": "warning",
}
if version("sglang").startswith(("0.5.10", "0.5.11", "0.5.12")):
    # They make them on a CPU, too, and fail.
    ARGUMENTS["disable_piecewise_cuda_graph"] = True

#: SGLang's own checks, as strict as they go: a difference of one token stops the engine.
CHECKS = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
    "SGLANG_DEBUG_MEMORY_POOL": "1",
}


@dataclass(frozen=True)
class Scenario:
    """What one scenario left."""

    answers: list[Any]
    peak: int
    """The most resident bytes of KV cache meanwhile."""
    after: dict[str, int]
    """KV memory a second after."""
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What one engine left."""

    status: int
    log: str
    start: dict[str, int]
    scenarios: dict[str, Scenario]


def run(
    model: Path,
    where: Path,
    scenarios: Sequence[str],
    environment: Mapping[str, str] | None = None,
    **arguments: Any,
) -> Outcome:
    """Starts an engine, runs scenarios in order and stops it. `where` keeps its files."""
    where.mkdir(parents=True, exist_ok=True)
    order, outcome, log = where / "order.json", where / "outcome.json", where / "log.txt"
    wanted = {**ARGUMENTS, "model_path": str(model), **arguments}
    order.write_text(json.dumps({"arguments": wanted, "scenarios": list(scenarios)}))
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KVCACHED_", "SGLANG_")) and name != "ENABLE_KVCACHED"
    }
    with log.open("w") as out:
        status = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("session.py")), str(order), str(outcome)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**inherited, "OMP_NUM_THREADS": "1", **CHECKS, **(environment or {})},
            timeout=PATIENCE,
            check=False,
        ).returncode
    found = json.loads(outcome.read_text()) if outcome.exists() else {"start": {}, "scenarios": []}
    left = [Scenario(**scenario) for scenario in found["scenarios"]]
    return Outcome(
        status, log.read_text(), found["start"], dict(zip(scenarios, left, strict=bool(left)))
    )
