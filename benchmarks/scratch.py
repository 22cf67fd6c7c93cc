"""Where a benchmark keeps what is gone when it ends: rows, ledgers, models, reports."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHARED_MEMORY = "/dev/shm"


@contextmanager
def directory() -> Iterator[Path]:
    """A new directory, in shared memory where that is there, so that no disk is measured."""
    where = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="kvcached-bench-", dir=where) as name:
        yield Path(name)
