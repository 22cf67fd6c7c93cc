"""Reading the ledgers of a directory, with real processes that hold leases."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import pytest

from kvcached import inventory

GIB = 1 << 30
MIB = 1 << 20

# Joins, takes memory, says so, and holds it until its input ends.
HOLDER = """
import sys
from kvcached import _C
path, device, group, instance, rank, held, options = sys.argv[1:]
terms = _C.LeaseTerms(
    group, instance, engine="vllm", rank=int(rank), device_limit_bytes=8 << 30,
    longest_bytes=256 << 20, **eval(options),
)
lease = _C.Lease.join(path, device, "host", 64 << 10, 16 << 30, 32 << 30, terms)
print(lease.resize(int(held)), flush=True)
sys.stdin.read()
"""


class Holder:
    """A process that holds one lease until it is closed or killed."""

    def __init__(
        self,
        directory: Path,
        group: str,
        instance: str,
        held: int,
        rank: int = 0,
        device: str = "host",
        **options: object,
    ) -> None:
        arguments = [directory / f"{device}.ledger", device, group, instance, rank, held, options]
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.answer = self.process.stdout.readline().strip()

    def kill(self) -> None:
        """Ends the process as the kernel does when memory is short."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Holder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        self.process.communicate()


@pytest.fixture
def hold(shm_dir: Path) -> Iterator[Callable[..., Holder]]:
    """Starts processes that hold leases, ended with the test."""
    started: list[Holder] = []

    def start(*arguments: object, **options: object) -> Holder:
        started.append(Holder(shm_dir, *arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for holder in started:
        holder.__exit__(None, None, None)


def read(directory: Path) -> list[inventory.Instance]:
    found, problems = inventory.devices(directory)
    assert problems == []
    return inventory.instances(found)


def test_a_directory_without_ledgers_holds_nothing(shm_dir: Path) -> None:
    assert inventory.devices(shm_dir) == ([], [])
    assert inventory.devices(shm_dir / "missing") == ([], [])


def test_a_device_tells_its_account(shm_dir: Path, hold: Callable[..., Holder]) -> None:
    assert hold("vllm", "ab12", GIB).answer == "granted"
    (device,), problems = inventory.devices(shm_dir)
    assert problems == []
    assert (device.id, device.driver) == ("host", "host")
    assert device.path == str(shm_dir / "host.ledger")
    assert (device.capacity, device.used) == (8 * GIB, GIB)
    assert (device.total, device.free) == (32 * GIB, 16 * GIB)
    assert len(device.leases) == 1


def test_ranks_on_several_devices_are_one_instance(
    shm_dir: Path, hold: Callable[..., Holder]
) -> None:
    hold("vllm", "ab12", 512 * MIB, rank=1, device="GPU-b")
    hold("vllm", "ab12", GIB, rank=0, device="GPU-a")
    hold("vllm", "cd34", 256 * MIB, rank=0, device="GPU-a")
    first, second = read(shm_dir)
    assert (first.name, first.ranks, first.devices) == ("vllm/ab12", 2, ("GPU-a", "GPU-b"))
    assert first.held == 1536 * MIB
    assert [lease.held for lease in first.leases] == [GIB, 512 * MIB]
    assert first.floor == 512 * MIB
    assert first.limit is None
    assert (second.name, second.held) == ("vllm/cd34", 256 * MIB)


def test_a_limit_is_the_sum_where_every_rank_has_one(
    shm_dir: Path, hold: Callable[..., Holder]
) -> None:
    hold("vllm", "ab12", MIB, rank=0, limit_bytes=GIB)
    hold("vllm", "ab12", MIB, rank=1, limit_bytes=GIB)
    assert read(shm_dir)[0].limit == 2 * GIB


def test_a_living_instance_is_ok_and_a_killed_one_dead(
    shm_dir: Path, hold: Callable[..., Holder]
) -> None:
    holder = hold("vllm", "ab12", GIB)
    (instance,) = read(shm_dir)
    assert (instance.state, instance.alive) == ("ok", True)
    assert instance.pids == (holder.process.pid,)
    holder.kill()
    (instance,) = read(shm_dir)
    assert (instance.state, instance.alive, instance.held) == ("dead", False, GIB)


def test_one_that_is_refused_memory_is_waiting(shm_dir: Path, hold: Callable[..., Holder]) -> None:
    hold("vllm", "big", 7 * GIB)
    assert hold("vllm", "late", 2 * GIB).answer == "no capacity"
    states = {instance.instance: instance.state for instance in read(shm_dir)}
    assert states["late"] == "waiting"
    assert states["big"] == "reclaiming"


def test_one_that_was_not_seen_is_stalled(
    shm_dir: Path, hold: Callable[..., Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold("vllm", "ab12", GIB)
    monkeypatch.setattr(inventory, "STALLED_SECONDS", 0.0)
    assert read(shm_dir)[0].state == "stalled"


def test_names_are_groups_or_instances(shm_dir: Path, hold: Callable[..., Holder]) -> None:
    hold("vllm", "ab12", MIB)
    hold("vllm", "ab99", MIB)
    hold("kvcached_chat", "ef56", MIB)
    among = read(shm_dir)
    group = inventory.find("vllm", among)
    assert (group.name, group.is_group, len(group.leases)) == ("vllm", True, 2)
    for name in ("vllm/ab12", "vllm/ab1", "kvcached_vllm/ab12"):
        found = inventory.find(name, among)
        assert (found.name, found.is_group) == ("vllm/ab12", False)
    for name in ("chat", "kvcached_chat"):
        assert inventory.find(name, among).name == "kvcached_chat"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("sglang", "no group 'sglang'; there are vllm/ab12, vllm/ab99"),
        ("vllm/zz", "no instance 'vllm/zz'; there are vllm/ab12, vllm/ab99"),
        ("vllm/", "no instance 'vllm/'; there are vllm/ab12, vllm/ab99"),
        ("vllm/ab", "'vllm/ab' is short for several; there are vllm/ab12, vllm/ab99"),
    ],
)
def test_a_name_that_is_nobodys_lists_those_there_are(
    shm_dir: Path, hold: Callable[..., Holder], name: str, line: str
) -> None:
    hold("vllm", "ab12", MIB)
    hold("vllm", "ab99", MIB)
    with pytest.raises(inventory.UnknownName) as caught:
        inventory.find(name, read(shm_dir))
    assert str(caught.value) == line


def test_where_nobody_runs_a_name_is_unknown() -> None:
    with pytest.raises(inventory.UnknownName, match="there are none"):
        inventory.find("vllm", [])


def test_a_damaged_ledger_is_a_problem_and_hides_no_other(
    shm_dir: Path, hold: Callable[..., Holder]
) -> None:
    (shm_dir / "GPU-old.ledger").write_bytes(b"another version's")
    hold("vllm", "ab12", MIB)
    found, (problem,) = inventory.devices(shm_dir)
    assert [device.id for device in found] == ["host"]
    assert problem.path == str(shm_dir / "GPU-old.ledger")
    assert "not a ledger of this version" in problem.reason


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_users_ledger_is_a_problem_that_names_them(
    shm_dir: Path, hold: Callable[..., Holder]
) -> None:
    hold("vllm", "ab12", MIB)
    shm_dir.chmod(0o755)
    script = (
        "import os, sys; from kvcached import inventory\n"
        "os.setuid(65534); print(inventory.devices(sys.argv[1])[1][0].reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(shm_dir)], capture_output=True, text=True, check=True
    )
    assert "belongs to root (0)" in done.stdout
