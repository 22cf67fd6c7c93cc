"""Whether the demo can serve with SGLang on this machine.

Standard library only: it is asked before anything is installed.
"""

from __future__ import annotations

import platform
from pathlib import Path

from tools.vllm_environment import has_nvidia_gpu


def reason_against_sglang() -> str | None:
    """Why SGLang cannot be run here, in one line; None where it can."""
    if has_nvidia_gpu():
        return (
            "the demo serves with SGLang on a processor only, and here vLLM takes the GPU: "
            "run it without --engine"
        )
    machine = platform.machine()
    if machine != "x86_64":
        return f"the demo serves with SGLang on x86-64 processors only, and this is {machine}"
    if "avx2" not in _processor_flags():
        return "the demo serves with SGLang on processors with AVX2 only, which this one lacks"
    return None


def _processor_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
