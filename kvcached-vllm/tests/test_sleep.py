"""An engine falls asleep and wakes beside neighbours: vLLM's own Worker.sleep() and wake_up(), over
a device that is told what to answer."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvcached_vllm.gpu_worker import ElasticGPUWorker

GIB = 1 << 30


class Asleep:
    """vLLM's way of suspending memory: it frees `freed` bytes of the device, and neighbours take
    `taken` meanwhile."""

    def __init__(self, freed: int, taken: int) -> None:
        self.free = 40 * GIB
        self.levels: list[int] = []
        self.woken: list[list[str] | None] = []
        self._change = freed - taken

    def suspend(self, level: int) -> None:
        self.levels.append(level)
        self.free += self._change

    def resume(self, tags: list[str] | None) -> None:
        self.woken.append(tags)


def worker_over(device: Asleep, monkeypatch: pytest.MonkeyPatch, elastic: bool = True) -> Any:
    """A worker without a GPU: as much of one as sleep() looks at."""
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda *_: (device.free, 139 * GIB))
    worker: Any = ElasticGPUWorker.__new__(ElasticGPUWorker)
    worker._pager = object() if elastic else None
    worker._sleep_mode_backend = device
    worker.vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(enable_nccl_comm_suspend=False)
    )
    worker.model_runner = SimpleNamespace(post_kv_cache_wake_up=lambda: None)
    worker._sleep_saved_parameters = worker._sleep_saved_buffers = {}
    worker._sleep_saved_draft_buffers = {}
    worker._sleep_rebuild_draft_metadata_buffers = False
    monkeypatch.setattr(worker, "synchronize_device", lambda: None, raising=False)
    return worker


def test_a_neighbour_who_grows_meanwhile_does_not_end_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = Asleep(freed=1 * GIB, taken=8 * GIB)
    caplog.set_level(logging.WARNING, "vllm.kvcached")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    worker_over(device, monkeypatch).sleep(1)
    assert device.levels == [1]
    assert "less of the device is free" in caplog.text


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


@pytest.mark.parametrize("tags", [None, ["weights"], ["kv_cache"]])
def test_what_slept_comes_back_once_there_is_room_for_it(
    monkeypatch: pytest.MonkeyPatch, tags: list[str] | None
) -> None:
    device = Asleep(freed=16 * GIB, taken=0)
    worker = worker_over(device, monkeypatch)
    sleeping = {
        1: SimpleNamespace(handle=(0, 5 * GIB), tag="weights", is_asleep=True),
        2: SimpleNamespace(handle=(0, 6 * GIB), tag="weights", is_asleep=False),
        3: SimpleNamespace(handle=(0, 7 * GIB), tag="cudagraph", is_asleep=True),
        # As of versions that do not mark what sleeps.
        4: SimpleNamespace(handle=(0, 1 * GIB), tag="runtime"),
    }
    allocator = SimpleNamespace(pointer_to_data=sleeping)
    try:
        cumem: Any = importlib.import_module("vllm.device_allocator.cumem")
    except ImportError:  # vLLM's build for CUDA, where there is no driver of CUDA
        cumem = SimpleNamespace(CuMemAllocator=SimpleNamespace(instance=None))
        monkeypatch.setitem(sys.modules, "vllm.device_allocator.cumem", cumem)
    monkeypatch.setattr(cumem.CuMemAllocator, "instance", allocator)
    entered: list[int] = []

    @contextlib.contextmanager
    def enter(missing: Callable[[], int]) -> Iterator[None]:
        entered.append(missing())
        assert not device.woken
        yield
        assert device.woken == [tags]

    worker._waking = SimpleNamespace(entered=enter)
    worker.wake_up(tags)
    assert entered == [{None: 13, "weights": 5, "kv_cache": 0}[tags and tags[0]] * GIB]
