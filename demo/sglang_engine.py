"""SGLang on a CPU, in an environment of its own: it wants other packages than vLLM does."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import final

from demo.budget import Budget
from demo.plan import BLOCK_TOKENS

ENVIRONMENT = Path(sys.prefix) / "sglang"
"""Inside the demo's own environment, and removed with it."""

PYTHON = ENVIRONMENT / "bin" / "python"

FLAGS = (
    *("--context-length", "1024"),
    *("--max-running-requests", "32"),
    # Its own kernels for processors need AMX. PyTorch's attention runs everywhere.
    *("--device", "cpu", "--attention-backend", "torch_native"),
    *("--sampling-backend", "pytorch", "--grammar-backend", "none"),
    "--disable-cuda-graph",
    # Counts on every answer to its last token, so that no request is let in that has to be thrown
    # out again. 1.0 counts on seven tenths.
    *("--schedule-conservativeness", "1.5"),
    # In 32 bits, as vLLM's, answers can be compared word by word.
    *("--dtype", "float32"),
)


@final
class SglangEngine:
    """`sglang.launch_server`, with pages of one token."""

    name = "SGLang"
    program = "sglang.launch_server"

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # PyTorch's attention is many small operations, one request after the other: on two
            # cores a second thread made a step ten times as long.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            # vLLM keeps full blocks as prefixes, and in this demo none fills. So that both show
            # the memory of requests alone, SGLang keeps none, either.
            "KVCACHED_MAX_CACHED_TOKENS": "0",
        }

    def command(self, model: str, served_model: str, port: int) -> list[str]:
        server = [str(PYTHON), "-m", "sglang.launch_server", "--model-path", model]
        address = ["--host", "127.0.0.1", "--port", str(port)]
        return [*server, *address, "--served-model-name", served_model]

    def flags(self, kv_bytes: int, budget: Budget) -> tuple[str, ...]:
        # SGLang adds the page that padded tokens are written to.
        tokens = kv_bytes // (budget.block_bytes // BLOCK_TOKENS) - 1
        return (*FLAGS, "--max-total-tokens", str(tokens))
