"""What a step works with, on a real GPU: taken before the step, waited for, and given back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvcached import _C, hooks
from kvcached_vllm.launches import LaunchMarks
from kvcached_vllm.working_memory import IDLE_AFTER, WorkingMemory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

MIB = 1 << 20
PEAK = 256 * MIB


@pytest.fixture
def pager(tmp_path: Path) -> Iterator[_C.Pager]:
    driver = hooks.driver_for("cuda", 0)
    geometry = _C.Geometry(8, [16 * MIB], [(0, 0, 2 * MIB, 2 * MIB)], 1)
    made = _C.Pager(
        driver,
        geometry,
        str(tmp_path / "engine.0.row"),
        "engine",
        ledger=str(tmp_path / "device.ledger"),
        terms=_C.LeaseTerms("group", "instance"),
    )
    made.start()
    yield made
    made.stop()


@pytest.fixture
def working(pager: _C.Pager) -> Iterator[WorkingMemory]:
    device = torch.device("cuda", 0)
    made = WorkingMemory(pager, device, PEAK, LaunchMarks(pager, device))
    yield made
    made.stop()


def reserved(tmp_path: Path) -> int:
    leases = _C.Ledger.open(str(tmp_path / "device.ledger")).describe()["leases"]
    return int(leases[0]["reserve_bytes"])


def test_a_step_finds_its_memory_and_an_idle_engine_has_given_it_back(
    working: WorkingMemory, tmp_path: Path
) -> None:
    assert torch.cuda.memory_reserved() < PEAK
    assert reserved(tmp_path) >= PEAK, "no cache may grow into it"
    working.hold()
    assert torch.cuda.memory_reserved() >= PEAK
    assert reserved(tmp_path) == 0, "it is held, and so no longer to be kept free"
    deadline = time.monotonic() + 4 * IDLE_AFTER
    while torch.cuda.memory_reserved() >= PEAK and time.monotonic() < deadline:
        time.sleep(0.05)
    assert torch.cuda.memory_reserved() < PEAK
    assert reserved(tmp_path) >= PEAK


def test_an_engine_that_works_keeps_it(working: WorkingMemory) -> None:
    until = time.monotonic() + 2 * IDLE_AFTER
    while time.monotonic() < until:
        working.hold()
        assert torch.cuda.memory_reserved() >= PEAK
        time.sleep(0.02)


def test_a_step_waits_until_a_full_device_has_room(working: WorkingMemory) -> None:
    stranger = _C.cuda_driver(0)
    stranger.probe()
    handles: list[tuple[int, int]] = []
    for size in (1 << 30, 64 * MIB, 2 * MIB):
        while True:
            try:
                handles.append((stranger.create(size), size))
            except _C.Error:
                break
    began = time.monotonic()

    def leave() -> None:
        time.sleep(0.5)
        while handles:
            stranger.destroy(*handles.pop())

    leaving = threading.Thread(target=leave)
    leaving.start()
    working.hold()
    leaving.join()
    assert time.monotonic() - began >= 0.5
    assert torch.cuda.memory_reserved() >= PEAK
