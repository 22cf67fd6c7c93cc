"""The names by which an engine's scheduler and its workers find each other's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcached import shm
from kvcached_vllm import engine

if TYPE_CHECKING:
    from pathlib import Path

    from vllm.config import VllmConfig

    from kvcached.settings import Settings


def group_of(settings: Settings) -> str:
    """The group of leases that this engine belongs to."""
    return settings.ipc_name.removeprefix("kvcached_") or "vllm"


def instance_of(vllm_config: VllmConfig) -> str:
    """What tells this engine from the others of its group."""
    index = engine.data_parallel_index(vllm_config.parallel_config)
    return f"{vllm_config.instance_id}-dp{index}"


def directory(settings: Settings) -> Path:
    """Where rows and ledgers lie. Raises shm.SharedMemoryError where there can be none."""
    return shm.directory(settings.shm_dir, settings.shm_group)


def engine_name(vllm_config: VllmConfig, settings: Settings) -> str:
    """This engine's name: its group, vLLM's instance id and its data-parallel index."""
    return f"kvcached_{group_of(settings)}-{instance_of(vllm_config)}"


def row_path(vllm_config: VllmConfig, settings: Settings, rank: int) -> Path:
    """The file of one rank's row. Raises shm.SharedMemoryError where there can be none."""
    return shm.row_path(directory(settings), engine_name(vllm_config, settings), rank)
