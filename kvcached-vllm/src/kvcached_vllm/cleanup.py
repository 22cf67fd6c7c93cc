"""Removes the rows and leases of killed workers when the process that started them ends.

vLLM's API server ends its engine with SIGKILL unless it is given a shutdown time-out, and a
killed worker cannot remove its own row. Whatever is left all the same (the server was killed
too) goes when the next engine starts.
"""

from __future__ import annotations

import atexit
import time
from typing import TYPE_CHECKING

from kvcached import _C, shm
from kvcached_vllm import identity

if TYPE_CHECKING:
    from pathlib import Path

    from vllm.config import VllmConfig

    from kvcached.settings import Settings

#: How long the end of a process may wait for its killed workers to be gone, in seconds.
_PATIENCE = 1.0

_watched: list[VllmConfig] = []


def remove_rows_at_exit(vllm_config: VllmConfig, settings: Settings) -> None:
    """Arranges for this process's end; `vllm_config` names the rows to wait for."""
    if not _watched:
        atexit.register(_remove_rows, settings)
    _watched.append(vllm_config)


def _remove_rows(settings: Settings) -> None:
    try:
        directory = identity.directory(settings)
    except shm.SharedMemoryError:
        return
    deadline = time.monotonic() + _PATIENCE
    while True:
        _C.remove_dead_rows(str(directory))
        if time.monotonic() >= deadline or not _ours(directory, settings):
            _C.remove_dead_ledgers(str(directory))
            return
        time.sleep(0.02)


def _ours(directory: Path, settings: Settings) -> list[Path]:
    # The instance id is settled after the configuration was attached.
    names = {identity.engine_name(config, settings) for config in _watched}
    return [row for row in directory.glob("*.row") if row.name.rsplit(".", 2)[0] in names]
