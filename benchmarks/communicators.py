"""What the ranks of an engine talk to each other with: methods for vLLM's workers.

vLLM mixes the class into its worker where it is named by `worker_extension_cls`, and calls a method
on every rank by POST /collective_rpc, which its server has where VLLM_SERVER_DEV_MODE=1.
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

ARGUMENTS = {"worker_extension_cls": "benchmarks.communicators.Communicators"}
VARIABLES = {"VLLM_SERVER_DEV_MODE": "1"}


class Communicators:
    """Mixed into a worker."""

    # What vLLM's workers have.
    rank: int

    def kvcached_benchmark_rank(self) -> dict[str, Any]:
        """This rank's process, and the communicators of its groups: which there are, and which of
        them vLLM has turned off."""
        import torch
        from vllm.distributed import parallel_state

        groups = {
            "tensor": parallel_state.get_tp_group(),
            "pipeline": parallel_state.get_pp_group(),
        }
        return {
            "rank": self.rank,
            "pid": os.getpid(),
            "groups": {
                name: {
                    "ranks": list(group.ranks),
                    "backend": str(torch.distributed.get_backend(group.device_group)),
                    "communicator": type(group.device_communicator).__name__,
                    **_parts(group.device_communicator),
                }
                for name, group in groups.items()
            },
            "variables": {
                name: value
                for name, value in sorted(os.environ.items())
                if name.startswith(("NCCL_", "VLLM_ALLREDUCE", "VLLM_NCCL", "TORCH_NCCL"))
            },
        }


def _parts(communicator: object) -> dict[str, str]:
    """By attribute: the class of a device communicator's part, and whether it is in use."""
    found: dict[str, str] = {}
    for name, part in sorted(vars(communicator).items() if communicator is not None else ()):
        if not name.endswith("_comm"):
            continue
        off = ", off" if getattr(part, "disabled", False) else ""
        found[name] = "none" if part is None else f"{type(part).__name__}{off}"
    return found


def ask(url: str) -> list[dict[str, Any]]:
    """Every rank's answer of a server, by rank."""
    request = urllib.request.Request(
        f"{url}/collective_rpc",
        json.dumps({"method": "kvcached_benchmark_rank"}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["results"]
    return sorted(found, key=lambda told: int(told["rank"]))
