"""Made-up engines for ``kvtop --demo``: real processes with real memory, in a ledger of their own.

They use the product's own pager, pool and ledger over this machine's memory, CAPACITY_BYTES at
most, and hold made-up requests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kvcached import inventory

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What all made-up engines may hold together.
CAPACITY_BYTES = 192 << 20
_START_SECONDS = 10.0
# So that the first look shows engines at work, not engines that start.
_SETTLE_SECONDS = 1.0

# Group, instance, and the most it wants in MiB; together more than there is.
_ENGINES = (("chat", "llama-8b", 112), ("chat", "qwen-4b", 72), ("code", "coder-7b", 96))


@contextmanager
def made_up_engines() -> Iterator[Path]:
    """The directory of a ledger with engines whose load comes and goes; removed afterwards."""
    shm = Path("/dev/shm")
    parent = shm if shm.is_dir() else None
    directory = Path(tempfile.mkdtemp(prefix="kvcached-demo-", dir=parent))
    module = "kvcached.cli.kvtop.made_up_engine"
    children = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(directory), group, name, str(most)],
            stdin=subprocess.PIPE,
        )
        for group, name, most in _ENGINES
    ]
    try:
        _wait_for_all(directory)
        time.sleep(_SETTLE_SECONDS)
        yield directory
    finally:
        for child in children:
            child.communicate()  # its input ends, and so does it
        shutil.rmtree(directory, ignore_errors=True)


def _wait_for_all(directory: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        devices, _ = inventory.devices(directory)
        leases = [lease for device in devices for lease in device.leases]
        if len(leases) == len(_ENGINES) and all(lease.live for lease in leases):
            return
        time.sleep(0.05)
