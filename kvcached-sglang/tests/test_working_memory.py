"""Working memory of an engine that is idle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvcached import device_room
from kvcached_sglang.working_memory import WorkingMemory

MIB = 1 << 20


class _Device:
    """PyTorch's allocator on a device, and the ledger, as far as working memory sees them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reserved = 100 * MIB
        self.refusals = 0
        self.events: list[str] = []
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: self.reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 40 * MIB)
        monkeypatch.setattr(torch.cuda, "empty_cache", self._empty)
        monkeypatch.setattr(torch, "empty", self._take)
        monkeypatch.setattr(device_room.time, "sleep", lambda _: None)

    def reserve(self, size: int) -> None:
        self.events.append(f"reserve {size // MIB}")

    def _empty(self) -> None:
        self.events.append("empty")
        self.reserved = 50 * MIB

    def _take(self, size: int, **_: Any) -> None:
        if self.refusals:
            self.refusals -= 1
            raise torch.cuda.OutOfMemoryError
        self.events.append(f"take {size // MIB}")
        self.reserved = 100 * MIB


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> _Device:
    return _Device(monkeypatch)


def _working(device: _Device) -> WorkingMemory:
    pager: Any = device
    return WorkingMemory(pager, torch.device("cpu"), None)


def test_what_went_back_has_room_kept_for_it_and_is_taken_before_the_next_batch(
    device: _Device,
) -> None:
    working = _working(device)
    working.hold()
    working.give_back()
    working.give_back()
    assert device.events == ["reserve 60", "empty", "reserve 50"]
    device.events.clear()
    working.hold()
    working.hold()
    assert device.events == ["take 50", "reserve 0"]


def test_a_batch_waits_until_the_device_has_room(device: _Device) -> None:
    working = _working(device)
    working.hold()
    working.give_back()
    device.refusals = 3
    working.hold()
    assert device.events[-2:] == ["take 50", "reserve 0"]


def test_what_was_left_over_from_loading_is_not_taken_again(device: _Device) -> None:
    working = _working(device)
    working.give_back()
    working.hold()
    assert device.events == ["empty"]
