"""Work that waits for a full device."""

from __future__ import annotations

import logging

import pytest

from kvcached import device_room
from kvcached.device_room import take_when_there_is_room

MIB = 1 << 20
LOG = logging.getLogger("kvcached.test_device_room")


class Full(Exception):
    """What an allocator raises."""


class Device:
    """One that has room again at some second of its own clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room_at: float) -> None:
        self.now = 0.0
        self.room_at = room_at
        self.taken = 0
        monkeypatch.setattr(device_room.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(device_room.time, "sleep", self._sleep)

    def take(self) -> None:
        if self.now < self.room_at:
            raise Full
        self.taken += 1

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self) -> bool:
        return take_when_there_is_room(self.take, Full, 3 * MIB, "step", LOG)


def test_where_there_is_room_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(monkeypatch, 0)
    assert device.wait()
    assert device.taken == 1
    assert caplog.messages == []


def test_a_wait_is_told_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(monkeypatch, 25)
    assert device.wait()
    assert device.taken == 1
    line = "kvcached: a step waits for 3 MiB beside the cache; the device is full"
    assert caplog.messages == [line, line]


def test_who_has_waited_for_two_minutes_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(monkeypatch, 1000)
    assert not device.wait()
    assert 120 <= device.now < 121
    assert caplog.messages[-1] == "kvcached: the device had no 3 MiB for a step in 120 s"


def test_another_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, 0)
    with pytest.raises(ZeroDivisionError):
        take_when_there_is_room(lambda: 1 // 0, Full, MIB, "step", LOG)
    assert device.now == 0
