"""An engine is busy from before a step is launched until its device is done, and keeps its working
memory as long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from kvcached_vllm.launches import LaunchMarks
from kvcached_vllm.working_memory import IDLE_AFTER, WorkingMemory


class Pager:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.reserved: list[int] = []
        self.zeroes_due = False
        self.zeroed: list[int] = []
        self.streams: list[int] = []

    def launched(self, step: int, event: int = 0) -> None:
        self.steps.append(step)

    def zero(self, step: int, stream: int = 0) -> None:
        self.zeroed.append(step)
        self.streams.append(stream)
        self.zeroes_due = False

    def reserve(self, size: int) -> None:
        self.reserved.append(size)


@pytest.fixture
def pager() -> Pager:
    return Pager()


@pytest.fixture
def working(
    pager: Pager, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[LaunchMarks], WorkingMemory]:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    def make(marks: LaunchMarks) -> WorkingMemory:
        made = WorkingMemory(pager, torch.device("cpu"), 1 << 20, marks)  # type: ignore[arg-type]
        request.addfinalizer(made.stop)
        return made

    return make


def marks_of(pager: Pager) -> LaunchMarks:
    return LaunchMarks(pager, torch.device("cpu"))  # type: ignore[arg-type]


def test_a_step_is_busy_from_its_beginning_to_its_mark(pager: Pager) -> None:
    marks = marks_of(pager)
    assert not marks.busy
    marks.begin(7)
    assert marks.busy
    marks.mark(7)
    assert not marks.busy
    assert pager.steps == [7]


def test_what_waits_for_zeroes_gets_them_ahead_of_the_step(pager: Pager) -> None:
    marks = marks_of(pager)
    for step in (1, 2, 3):
        pager.zeroes_due = step == 2
        marks.begin(step)
        assert pager.steps == list(range(1, step))
        marks.mark(step)
    assert pager.zeroed == [2]


def test_a_step_stays_on_the_stream_that_zeroes_its_memory(
    pager: Pager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's current_stream() would move a thread that has set none, in the middle of a step."""
    from vllm.utils import torch_utils

    stream = SimpleNamespace(cuda_stream=42)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    # As on a GPU, whatever vLLM's worker for CPUs has made of it in this process.
    monkeypatch.setattr(torch.cuda, "set_stream", torch_utils._patched_set_stream)
    # A thread of its own, as far as vLLM knows.
    monkeypatch.setattr(torch_utils, "_current_stream_tls", threading.local())
    monkeypatch.setattr(torch_utils, "prev_set_stream", lambda stream: None)
    marks = LaunchMarks(pager, torch.device("cuda", 1))  # type: ignore[arg-type]
    pager.zeroes_due = True
    marks.begin(7)
    assert pager.streams == [42]
    assert torch_utils.current_stream() is stream


def test_a_step_that_takes_long_keeps_its_working_memory(
    pager: Pager, working: Callable[[LaunchMarks], WorkingMemory]
) -> None:
    marks = marks_of(pager)
    memory = working(marks)
    memory.hold()
    marks.begin(1)
    told = list(pager.reserved)
    time.sleep(2 * IDLE_AFTER)
    assert pager.reserved == told, "it was given back in the middle of a step"
    assert told[-1] == 0
    marks.mark(1)
    deadline = time.monotonic() + 4 * IDLE_AFTER
    while pager.reserved == told and time.monotonic() < deadline:
        time.sleep(0.02)
    assert pager.reserved[-1] >= 1 << 20, "and given back when the engine was idle"
