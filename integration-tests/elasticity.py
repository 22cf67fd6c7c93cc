"""What elastic and vanilla mean, seen from outside an engine: its environment and its log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

# What a user passes where vLLM skips platform plugins. Only this file spells them.
SCHEDULER_CLASS = "kvcached_vllm.scheduler.ElasticScheduler"
WORKER_CLASS = "kvcached_vllm.cpu_worker.ElasticCPUWorker"

START_LINE = "kvcached: elastic KV cache"
VANILLA_LINE = "kvcached: vanilla:"

# Things that no engine's log may hold after a clean run. The second is how vLLM dies when
# its block pool promised more than it had.
_COMPLAINTS = re.compile(
    r"Traceback \(most recent call last\)|Cannot get \d+ free blocks|Fatal Python error"
    r"|EngineDeadError|AssertionError"
)


def vanilla() -> dict[str, str]:
    """Return the environment of an engine that kvcached must leave alone."""
    return {"ENABLE_KVCACHED": "false"}


def elastic(shm_dir: Path, **settings: str | int) -> dict[str, str]:
    """Return the environment of an engine that must be elastic or not start.

    Each engine gets a directory of its own for what it shares, so that no test meets the
    ledger or the leftovers of another.
    """
    return {
        "ENABLE_KVCACHED": "true",
        "KVCACHED_REQUIRED": "true",
        "KVCACHED_SHM_DIR": str(shm_dir),
        **{name: str(value) for name, value in settings.items()},
    }


def lines_about_kvcached(log: str) -> list[str]:
    return [line for line in log.splitlines() if "kvcached" in line]


def start_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if START_LINE in line]


def vanilla_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if VANILLA_LINE in line]


def complaints(log: str) -> list[str]:
    """Return the lines of a log that a clean run must not have.

    Vanilla vLLM 0.32 complains, too, when it is stopped and its engine ends before its API server
    has stopped listening to it: a race of its own, by which kvcached is not to be judged.
    """
    before, stop, after = log.partition("[shutdown]")
    lines = before.splitlines()
    lines += [line for line in after.splitlines() if "async_llm.py" not in line] if stop else []
    return [line for line in lines if _COMPLAINTS.search(line)]


def not_attached(log: str, memory: Mapping[str, int]) -> str | None:
    """Say why an engine is not elastic, or nothing if it is.

    Both witnesses must agree: the line that kvcached logs, and the kernel's list of
    mappings. Where kvcached is missing, its own KVCACHED_REQUIRED cannot object.
    """
    missing = []
    if not start_lines(log):
        missing.append(f'its log has no line with "{START_LINE}"')
    if not memory["mappings"]:
        missing.append("none of its processes maps KV memory of kvcached's")
    if not missing:
        return None
    said = lines_about_kvcached(log)[-5:] or ["nothing: is kvcached-vllm installed?"]
    return "the engine is not elastic: {}. About kvcached it logged:\n  {}".format(
        " and ".join(missing), "\n  ".join(said)
    )
