"""What the demo must know of an inference engine to serve a model with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from demo.budget import Budget


class Engine(Protocol):
    """One engine, as it is installed here."""

    @property
    def name(self) -> str:
        """As its makers write it."""

    @property
    def program(self) -> str:
        """What is started."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What its servers need, with kvcached and without."""

    def command(self, model: str, served_model: str, port: int) -> list[str]:
        """A server of a model under a name at a port of this machine; flags may follow."""

    def flags(self, kv_bytes: int, budget: Budget) -> tuple[str, ...]:
        """The demo's own flags, with so many bytes for the KV cache."""
