"""The names by which an engine's scheduler and its workers find each other's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcached import shm

if TYPE_CHECKING:
    from pathlib import Path

    from vllm.config import VllmConfig

    from kvcached.settings import Settings


def engine_name(vllm_config: VllmConfig, settings: Settings) -> str:
    """This engine's name: its group, vLLM's instance id and its data-parallel index."""
    group = settings.ipc_name.removeprefix("kvcached_") or "vllm"
    index = vllm_config.parallel_config.data_parallel_index
    return f"kvcached_{group}-{vllm_config.instance_id}-dp{index}"


def row_path(vllm_config: VllmConfig, settings: Settings, rank: int) -> Path:
    """The file of one rank's row. Raises shm.SharedMemoryError where there can be none."""
    return shm.row_path(shm.directory(settings.shm_dir), engine_name(vllm_config, settings), rank)
