"""What differs between a machine with an NVIDIA GPU and one without.

Both servers of a demo get the same flags. They differ in kvcached's own variables alone.
"""

from __future__ import annotations

from typing import Protocol

from demo.memory import ElasticHostMeter, GpuMeter, Meter, VanillaHostMeter, gpu_bytes_used
from demo.server import Server
from demo.sizes import GIB, in_binary_units
from tools.vllm_environment import has_nvidia_gpu

VANILLA = {"ENABLE_KVCACHED": "false"}
ELASTIC = {"ENABLE_KVCACHED": "true", "KVCACHED_REQUIRED": "true"}
QUIET = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

COMMON_FLAGS = (
    *("--max-model-len", "2048"),
    *("--max-num-seqs", "32"),
    # Compilation takes longer than the demo saves by it.
    "--enforce-eager",
    # In 16 bits an answer depends on which other requests share its batch: rounding decides
    # between two likely words. In 32 bits answers can be compared word by word.
    *("--dtype", "float32"),
)


class Machine(Protocol):
    """How to start servers here, and how to see what they hold."""

    measured: str
    """What the meters read, as an axis title."""

    stays: str
    """What kvcached's server still holds when no request runs."""

    environment: dict[str, str]
    """What to set for both servers."""

    def before_start(self) -> None:
        """Called before each server starts."""

    def vanilla_meter(self, server: Server) -> Meter: ...

    def elastic_meter(self, server: Server) -> Meter: ...

    def why_not_elastic(self, server: Server, vanilla_bytes: int) -> str | None:
        """What shows that a server's KV cache is not elastic; None if it is."""


class Host:
    """No GPU: vLLM's CPU build, whose KV cache has a fixed size."""

    measured = "KV cache, resident memory"
    stays = "cached prefixes; hardly anything with `-- --no-enable-prefix-caching`"
    kv_gib = 2
    """Room for 22 requests of full length with the demo's model."""

    def __init__(self) -> None:
        self.environment = {**QUIET, "VLLM_CPU_KVCACHE_SPACE": str(self.kv_gib)}

    def before_start(self) -> None:
        """Nothing: what these meters read belongs to the server alone."""

    def vanilla_meter(self, server: Server) -> Meter:
        return VanillaHostMeter(server.process_ids, self.kv_gib * GIB)

    def elastic_meter(self, server: Server) -> Meter:
        return ElasticHostMeter(server.process_ids)

    def why_not_elastic(self, server: Server, vanilla_bytes: int) -> str | None:
        if ElasticHostMeter(server.process_ids).attached():
            return None
        return "no process of the server has a memfd:kvcached mapping"


class Gpu:
    """An NVIDIA GPU: vLLM takes its usual nine tenths of it, kvcached what is in use."""

    measured = "GPU memory of the server, weights included"
    stays = "weights, workspace and cached prefixes"

    def __init__(self) -> None:
        self.environment = dict(QUIET)
        self._before = 0

    def before_start(self) -> None:
        """Note what others hold."""
        self._before = gpu_bytes_used()

    def vanilla_meter(self, server: Server) -> Meter:
        return GpuMeter(self._before)

    def elastic_meter(self, server: Server) -> Meter:
        return GpuMeter(self._before)

    def why_not_elastic(self, server: Server, vanilla_bytes: int) -> str | None:
        held = GpuMeter(self._before).read()
        if held < 0.9 * vanilla_bytes:
            return None
        return f"the idle server holds {in_binary_units(held)}, as much as vanilla vLLM"


def this_machine() -> Machine:
    """The machine the demo runs on."""
    return Gpu() if has_nvidia_gpu() else Host()
