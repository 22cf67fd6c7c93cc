"""vLLM, in the environment that the demo runs in."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import final

from demo.budget import Budget
from demo.plan import BLOCK_TOKENS

FLAGS = (
    *("--max-model-len", "1024"),
    *("--max-num-seqs", "32"),
    *("--block-size", str(BLOCK_TOKENS)),
    # Compilation takes longer than the demo saves by it.
    "--enforce-eager",
    # In 16 bits an answer depends on which other requests share its batch: rounding decides
    # between two likely words. In 32 bits answers can be compared word by word.
    *("--dtype", "float32"),
)


@final
class VllmEngine:
    """`vllm serve`, on a GPU where there is one."""

    name = "vLLM"
    program = "vllm serve"
    environment: Mapping[str, str] = {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def __init__(self, machine_flags: tuple[str, ...]) -> None:
        """`machine_flags`: what every server needs on this machine."""
        self._machine_flags = machine_flags

    def command(self, model: str, served_model: str, port: int) -> list[str]:
        vllm = str(Path(sys.executable).parent.absolute() / "vllm")
        address = ["--host", "127.0.0.1", "--port", str(port)]
        return [vllm, "serve", model, *address, "--served-model-name", served_model]

    def flags(self, kv_bytes: int, budget: Budget) -> tuple[str, ...]:
        return (*FLAGS, *self._machine_flags, "--kv-cache-memory-bytes", str(kv_bytes))
