"""Another instance on the engine's device, as the ledger sees it: nobody serves behind it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvcached import _C, inventory

#: What is left to the engine of a capacity of CAPACITY: five extents, as with the small budget.
CAPACITY = 18 * 262144
MOST = 13 * 262144
_GRANULE = 65536

left_at: float | None = None
"""When the last neighbour began to leave, by the monotonic clock."""


def _join() -> _C.Lease:
    driver = _C.host_driver()
    driver.probe()
    free, total = driver.memory_info()
    path = Path(os.environ["KVCACHED_SHM_DIR"]) / "host.ledger"
    terms = _C.LeaseTerms("neighbour", "test", engine="test", floor_bytes=MOST)
    return _C.Lease.join(str(path), "host", "host", _GRANULE, free, total, terms)


def _take(lease: _C.Lease, size: int) -> None:
    deadline = time.monotonic() + 20
    while (said := lease.resize(size)) != "granted":
        if time.monotonic() > deadline:
            raise TimeoutError(f"the neighbour was not given {size} bytes: {said}")
        time.sleep(0.01)


def live_bytes() -> int:
    """What requests of the engines on this device hold, as their ledger tells."""
    devices, _ = inventory.devices(Path(os.environ["KVCACHED_SHM_DIR"]))
    return sum(lease.live for device in devices for lease in device.leases)


def grasp(done: threading.Event) -> None:
    """Somebody wants MOST, to which it is entitled, and takes every granule that it can have until
    `done`."""
    global left_at
    lease = _join()
    held = 0
    while not done.is_set():
        if lease.resize(MOST) == "granted":
            done.wait()
        while held < MOST and lease.resize(held + _GRANULE) == "granted":
            held += _GRANULE
        time.sleep(0.002)
    left_at = time.monotonic()
    lease.leave()


@contextmanager
def holding(size: int) -> Iterator[None]:
    """Somebody asks for so many bytes, to which it is entitled, and holds them meanwhile."""
    global left_at
    lease = _join()
    _take(lease, size)
    try:
        yield
    finally:
        left_at = time.monotonic()
        lease.leave()
