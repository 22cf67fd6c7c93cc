"""An engine falls asleep and wakes beside neighbours: vLLM's own Worker.sleep() and wake_up(), over
a device that is told what to answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvcached_vllm.gpu_worker import ElasticGPUWorker
from kvcached_vllm.launches import LaunchMarks
from kvcached_vllm.working_memory import WorkingMemory

GIB = 1 << 30


class Asleep:
    """vLLM's way of suspending memory: it frees `freed` bytes of the device, and neighbours take
    `taken` meanwhile."""

    def __init__(self, freed: int, taken: int) -> None:
        self.free = 40 * GIB
        self.levels: list[int] = []
        self.woken: list[tuple[list[str] | None, int]] = []
        """What was woken, and how much of the device was free then."""
        self._change = freed - taken

    def suspend(self, level: int) -> None:
        self.levels.append(level)
        self.free += self._change

    def resume(self, tags: list[str] | None) -> None:
        self.woken.append((tags, self.free))


def worker_over(device: Asleep, monkeypatch: pytest.MonkeyPatch, elastic: bool = True) -> Any:
    """A worker without a GPU: as much of one as sleep() looks at."""
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda *_: (device.free, 139 * GIB))
    worker: Any = ElasticGPUWorker.__new__(ElasticGPUWorker)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (device.free, 139 * GIB))
    worker._pager = object() if elastic else None
    worker._sleep_mode_backend = device
    worker.vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(enable_nccl_comm_suspend=False)
    )
    worker.model_runner = SimpleNamespace(model_memory_usage=16 * GIB)
    worker._sleep_saved_parameters = worker._sleep_saved_buffers = {}
    worker._sleep_saved_draft_buffers = {}
    monkeypatch.setattr(worker, "synchronize_device", lambda: None, raising=False)
    return worker


class Reserving:
    """Remembers what a pager was told to keep free."""

    def __init__(self) -> None:
        self.reserved: list[int] = []

    def reserve(self, size: int) -> None:
        self.reserved.append(size)


@pytest.fixture
def pager() -> Reserving:
    return Reserving()


@pytest.fixture
def working(pager: Reserving, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkingMemory]:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    device = torch.device("cpu")
    marks = LaunchMarks(pager, device)  # type: ignore[arg-type]
    made = WorkingMemory(pager, device, 1 * GIB, marks)  # type: ignore[arg-type]
    yield made
    made.stop()


def test_a_neighbour_who_grows_meanwhile_does_not_end_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = Asleep(freed=1 * GIB, taken=8 * GIB)
    caplog.set_level(logging.WARNING, "vllm.kvcached")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    worker_over(device, monkeypatch).sleep(1)
    assert device.levels == [1]
    assert "others took more of the device" in caplog.text


def test_where_nobody_took_anything_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = Asleep(freed=1 * GIB, taken=0)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    worker_over(device, monkeypatch).sleep(1)
    assert device.levels == [1]
    assert "kvcached" not in caplog.text


def test_a_vanilla_engine_fails_as_vllm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Asleep(freed=1 * GIB, taken=8 * GIB)
    with pytest.raises(AssertionError, match="Memory usage increased"):
        worker_over(device, monkeypatch, elastic=False).sleep(1)


def test_other_failures_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Asleep(freed=0, taken=0)

    def fail(level: int) -> None:
        raise AssertionError("the allocator is not vLLM's")

    monkeypatch.setattr(device, "suspend", fail)
    with pytest.raises(AssertionError, match="allocator"):
        worker_over(device, monkeypatch).sleep(1)


def test_weights_come_back_once_neighbours_have_made_room(
    pager: Reserving, working: WorkingMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Asleep(freed=16 * GIB, taken=50 * GIB)
    worker = worker_over(device, monkeypatch)
    worker._working = working
    worker.sleep(1)
    assert device.free < 16 * GIB
    own = pager.reserved[-1]

    def give_way() -> None:
        device.free = 20 * GIB

    # A neighbour gives way to what is reserved.
    neighbour = threading.Timer(0.2, give_way)
    neighbour.start()
    worker.wake_up()
    neighbour.join()
    assert device.woken == [(None, 20 * GIB)], "it woke into a device that had no room"
    assert own + 16 * GIB in pager.reserved, "no neighbour was asked for room"
    assert pager.reserved[-1] == own, "and what is taken is reserved no more"


@pytest.mark.parametrize("asleep", [True, False])
def test_who_takes_no_weights_back_waits_for_no_room(
    working: WorkingMemory, monkeypatch: pytest.MonkeyPatch, asleep: bool
) -> None:
    device = Asleep(freed=16 * GIB, taken=50 * GIB)
    worker = worker_over(device, monkeypatch)
    worker._working = working
    if asleep:
        worker.sleep(1)
        worker.wake_up(["kv_cache"])
    else:
        device.free = 0
        worker.wake_up()
    assert len(device.woken) == 1
