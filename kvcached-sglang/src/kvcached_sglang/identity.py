"""The names by which an engine's ranks appear to others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kvcached import shm

if TYPE_CHECKING:
    from pathlib import Path

    from kvcached.settings import Settings


def group_of(settings: Settings) -> str:
    """The group of leases that this engine belongs to."""
    return settings.ipc_name.removeprefix("kvcached_") or "sglang"


def instance_of(server_args: Any, first_device: int) -> str:
    """What tells this engine, or this replica of it, from the others of its group.

    All ranks of an engine are children of one process and got one set of arguments, to which
    SGLang has drawn a random seed where the user gave none.
    """
    return f"{os.getppid():x}-{_seed(server_args) & 0xFFFFFFFF:x}-{first_device}"


def _seed(server_args: Any) -> int:
    seed = server_args.random_seed
    if seed is None:
        # Since 0.5.20 arguments stay as the user gave them; what was settled lies beside them.
        from sglang.srt.runtime_context import get_device

        seed = get_device().random_seed
    return int(seed)


def children_of(launcher: int) -> str:
    """A pattern for the rows of the engines whose schedulers a process started."""
    return f"kvcached_*-{launcher:x}-*.row"


def directory(settings: Settings) -> Path:
    """Where rows and ledgers lie. Raises shm.SharedMemoryError where there can be none."""
    return shm.directory(settings.shm_dir, settings.shm_group)


def row_path(settings: Settings, instance: str, rank: int) -> Path:
    """The file of one rank's row. Raises shm.SharedMemoryError where there can be none."""
    return shm.row_path(directory(settings), engine_name(settings, instance), rank)


def engine_name(settings: Settings, instance: str) -> str:
    """This engine's name in its ranks' rows."""
    return f"kvcached_{group_of(settings)}-{instance}"
