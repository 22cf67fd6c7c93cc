"""What differs between a machine with an NVIDIA GPU and one without."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from demo.fixed_memory import FixedHostMeter, FixedMeter
from demo.ledger_memory import LedgerMeter
from demo.memory import ElasticHostMeter, Meter
from demo.server import Server
from tools.vllm_environment import has_nvidia_gpu


class ElasticMeter(Meter, Protocol):
    """A meter that knows whether there is anything elastic to read."""

    def attached(self) -> bool: ...


class Machine(Protocol):
    """How to start servers here, and how to see what their KV caches hold."""

    measured: str
    """What the meters read, as an axis title."""

    flags: tuple[str, ...]
    """What every server of vLLM needs here."""

    def fixed_meter(self, server: Server, reserved_bytes: int) -> Meter: ...

    def elastic_meter(self, server: Server, ledgers: Path) -> ElasticMeter: ...


class Host:
    """No GPU: engines on the processor. The kernel knows what is resident."""

    measured = "KV cache, resident memory"
    flags: tuple[str, ...] = ()

    def fixed_meter(self, server: Server, reserved_bytes: int) -> Meter:
        return FixedHostMeter(server.process_ids, reserved_bytes)

    def elastic_meter(self, server: Server, ledgers: Path) -> ElasticMeter:
        return ElasticHostMeter(server.process_ids)


class Gpu:
    """An NVIDIA GPU. Most containers hide which process holds what on it."""

    measured = "KV cache: reserved by vLLM's flag, or held by kvcached's ledger"
    # Each server looks for this share of the device to be free before it starts.
    flags: tuple[str, ...] = ("--gpu-memory-utilization", "0.4")

    def fixed_meter(self, server: Server, reserved_bytes: int) -> Meter:
        return FixedMeter(reserved_bytes)

    def elastic_meter(self, server: Server, ledgers: Path) -> ElasticMeter:
        return LedgerMeter(ledgers, server.served_model)


def this_machine() -> Machine:
    """The machine the demo runs on."""
    return Gpu() if has_nvidia_gpu() else Host()
