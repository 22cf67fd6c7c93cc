"""Engines wake beside neighbours: real pagers and their ledger, over a device that is told what is
free of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from kvcached import _C, hooks
from kvcached_vllm import waking
from kvcached_vllm.launches import LaunchMarks
from kvcached_vllm.waking import WakingRoom
from kvcached_vllm.working_memory import WorkingMemory

MIB = 1 << 20
GIB = 1 << 30
CPU = torch.device("cpu")
#: What a step of these engines works with.
PEAK = 64 * MIB


class Device:
    """How much of it is free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 0
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (self.free, 139 * GIB))
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


Join = Callable[[str], WakingRoom]


@pytest.fixture
def join(tmp_path: Path, device: Device) -> Iterator[Join]:
    """Starts an engine's pager on one ledger, and what of its worker is looked at here."""
    with ExitStack() as stack:

        def make(name: str) -> WakingRoom:
            row = str(tmp_path / f"{name}.0.row")
            pager = _C.Pager(
                hooks.driver_for("cpu", 0),
                _C.Geometry(8, [16 * MIB], [(0, 0, 2 * MIB, 2 * MIB)], 1),
                row,
                name,
                ledger=str(tmp_path / "device.ledger"),
                terms=_C.LeaseTerms(name, name),
            )
            pager.start()
            stack.callback(pager.stop)
            working = WorkingMemory(pager, CPU, PEAK, LaunchMarks(pager, CPU))
            stack.callback(working.stop)
            return WakingRoom(working, row, CPU)

        yield make


def reserved(tmp_path: Path) -> dict[str, int]:
    """By instance, what the ledger keeps free, in bytes."""
    leases = _C.Ledger.open(str(tmp_path / "device.ledger")).describe()["leases"]
    return {lease["instance"]: lease["reserve_bytes"] for lease in leases}


def wake(room: WakingRoom, missing: list[int], seen: list[str], name: str) -> threading.Thread:
    """Wakes on a thread of its own: all that is `missing` comes back in two pieces."""

    def run() -> None:
        with room.entered(lambda: missing[0]):
            seen.append(f"{name} in")
            time.sleep(0.1)
            missing[0] //= 2
            time.sleep(0.1)
            missing[0] = 0
            seen.append(f"{name} out")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_an_engine_wakes_once_its_neighbours_have_given_way(
    device: Device, join: Join, tmp_path: Path
) -> None:
    room = join("sleeper")
    join("neighbour")
    own = reserved(tmp_path)["sleeper"]
    assert own >= PEAK
    seen: list[str] = []
    thread = wake(room, [GIB], seen, "sleeper")
    time.sleep(0.8)
    assert not seen, "it woke into a full device"
    assert reserved(tmp_path)["sleeper"] == own + GIB, "and asked nobody for room"
    # Room for the weights alone is not enough: the neighbour's next step will take its own.
    device.free = GIB + PEAK // 2
    time.sleep(0.2)
    assert not seen
    device.free = GIB + 2 * PEAK
    thread.join(5)
    assert seen == ["sleeper in", "sleeper out"]
    assert reserved(tmp_path)["sleeper"] == own, "what has come back is no longer wanted"


def test_a_crowded_device_is_woken_into_after_a_while(
    device: Device, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waking, "_FOR_NEIGHBOURS", 1.0)
    room = join("sleeper")
    join("neighbour")
    device.free = GIB  # and none for the neighbour's next step
    began = time.monotonic()
    with room.entered(lambda: GIB):
        waited = time.monotonic() - began
    assert waited >= 1.0
    assert waited < 60, "it gave up: that takes two minutes"


def test_nobody_wakes_before_the_ledger_has_looked_at_the_device_again(
    device: Device, join: Join, tmp_path: Path
) -> None:
    """Until then neighbours grow into what is reserved."""
    room = join("sleeper")
    device.free = 8 * GIB
    for _ in range(4):
        time.sleep(0.15)  # the last look is no longer new
        began = time.monotonic()
        with room.entered(lambda: GIB):
            waited = time.monotonic() - began
            ledger = _C.Ledger.open(str(tmp_path / "device.ledger"))
            assert ledger.describe()["sampled_seconds_ago"] <= waited + 0.05


def test_what_has_come_back_is_not_counted_twice(
    device: Device, join: Join, tmp_path: Path
) -> None:
    room = join("sleeper")
    own = reserved(tmp_path)["sleeper"]
    device.free = 8 * GIB
    missing = [4 * GIB]
    with room.entered(lambda: missing[0]):
        assert reserved(tmp_path)["sleeper"] == own + 4 * GIB
        missing[0] = GIB
        deadline = time.monotonic() + 5
        while reserved(tmp_path)["sleeper"] != own + GIB:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_two_that_wake_at_once_do_not_share_one_room(device: Device, join: Join) -> None:
    one, other = join("one"), join("other")
    device.free = GIB + 4 * PEAK
    seen: list[str] = []
    for thread in [wake(one, [GIB], seen, "one"), wake(other, [GIB], seen, "other")]:
        thread.join(10)
    first, second = seen[0].split()[0], seen[2].split()[0]
    assert seen == [f"{first} in", f"{first} out", f"{second} in", f"{second} out"]
    assert {first, second} == {"one", "other"}


def test_an_engine_that_fails_to_wake_wants_nothing_more(
    device: Device, join: Join, tmp_path: Path
) -> None:
    room = join("sleeper")
    own = reserved(tmp_path)["sleeper"]
    device.free = 8 * GIB
    with pytest.raises(RuntimeError, match="vLLM"), room.entered(lambda: GIB):
        raise RuntimeError("vLLM could not")
    assert reserved(tmp_path)["sleeper"] == own


def test_an_engine_of_which_nothing_sleeps_asks_nobody(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = join("awake")
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", asked.append)
    with room.entered(lambda: 0):
        assert not asked
