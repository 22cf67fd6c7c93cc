"""kvctl's orders: to engines that answer, to processes that do not, and those that are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_inventory import GIB, MIB, Holder, hold

from kvcached import inventory
from kvcached.cli import main

__all__ = ["hold"]

# A scheduler and its worker in one process, over real memory: 16 MiB of blocks, most of it slack.
# It answers like the engines' packages do: when nothing is in flight any more.
ENGINE = """
import select, sys
from kvcached import _C
directory, instance = sys.argv[1:]
driver = _C.host_driver()
driver.probe()
size = 16 << 10
geometry = _C.Geometry(4096, [4096 * size], [(0, 0, size, size)], 4)
row = f"{directory}/{instance}.0.row"
terms = _C.LeaseTerms("vllm", instance, engine="vllm", row=row, extent_bytes=4 * size)
pager = _C.Pager(driver, geometry, row, "vllm", "layer", 0, 0, 1, f"{directory}/host.ledger",
                 False, terms)
pager.start()
pool = _C.Pool([row], 1, 100)
pool.ensure(1000, 5.0)
pool.keep(0)
pool.expect(0)
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    pool.wait_for_bell(0.01)
    if pool.has_orders or pool.in_flight or any(pool.pressure):
        pool.balance(True)
    if pool.has_orders and not pool.in_flight:
        pool.orders_done()
pager.stop()
"""


@pytest.fixture
def engine(shm_dir: Path) -> Iterator[Callable[[str], None]]:
    """Starts engines that answer, ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(instance: str) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", ENGINE, str(shm_dir), instance],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    yield start
    for process in started:
        process.communicate()


@pytest.fixture
def kvctl(
    shm_dir: Path, capsys: pytest.CaptureFixture[str], clean_environment: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in the test's directory; returns exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["--dir", str(shm_dir), *arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Does not wait long for those who never answer."""
    monkeypatch.setattr("kvcached.cli.carrying_out.PATIENCE_SECONDS", 0.05)


def leases(directory: Path) -> dict[str, inventory.LeaseView]:
    found, _ = inventory.devices(directory)
    return {lease.instance: lease for device in found for lease in device.leases}


def test_a_limit_takes_effect_on_an_idle_engine_and_says_when(
    shm_dir: Path, engine: Callable[[str], None], kvctl: Callable[..., tuple[int, str, str]]
) -> None:
    engine("ab12")
    before = leases(shm_dir)["ab12"].held
    assert before > 8 * MIB
    code, out, err = kvctl("limit", "vllm/ab", "4M")
    assert (code, err) == (0, "")
    assert out.startswith("vllm/ab12: limit 4.0 MiB, in force after ")
    assert "freed 1" in out
    after = leases(shm_dir)["ab12"]
    assert after.limit == 4 * MIB
    assert after.held <= 4 * MIB


def test_a_trim_takes_slack_and_says_how_much(
    shm_dir: Path, engine: Callable[[str], None], kvctl: Callable[..., tuple[int, str, str]]
) -> None:
    engine("ab12")
    before = leases(shm_dir)["ab12"]
    assert before.slack > 0
    code, out, _ = kvctl("trim", "vllm", "--json")
    assert code == 0
    (order,) = json.loads(out)["orders"]
    assert order["in_force"]
    assert order["warning"] is None
    # One extent of slack is the least that a pool keeps.
    assert order["freed_bytes"] >= before.slack - before.extent
    assert leases(shm_dir)["ab12"].limit is None


def test_a_floor_and_a_weight_are_answered(
    shm_dir: Path, engine: Callable[[str], None], kvctl: Callable[..., tuple[int, str, str]]
) -> None:
    engine("ab12")
    code, out, _ = kvctl("floor", "vllm/ab12", "2M")
    assert code == 0
    assert out.startswith("vllm/ab12: floor 2.0 MiB, in force after ")
    assert kvctl("weight", "vllm", "2.5")[0] == 0
    lease = leases(shm_dir)["ab12"]
    assert (lease.floor, lease.floor_is_default, lease.weight) == (2 * MIB, False, 2.5)
    assert kvctl("floor", "vllm/ab12", "default")[0] == 0
    assert leases(shm_dir)["ab12"].floor_is_default


def test_a_limit_below_what_is_pinned_is_refused_with_what_can_be_reached(
    shm_dir: Path, engine: Callable[[str], None], kvctl: Callable[..., tuple[int, str, str]]
) -> None:
    engine("ab12")
    keep = leases(shm_dir)["ab12"].keep
    assert keep > 0
    for name in ("vllm/ab12", "vllm"):
        code, out, err = kvctl("limit", name, "1K")
        assert (code, out) == (2, "")
        assert f"the least is {keep} bytes" in err
        assert err.count("\n") == 1
    assert leases(shm_dir)["ab12"].orders == 0


@pytest.mark.usefixtures("impatient")
def test_who_does_not_answer_is_a_warning_and_the_order_stays(
    shm_dir: Path, hold: Callable[..., Holder], kvctl: Callable[..., tuple[int, str, str]]
) -> None:
    hold("vllm", "ab12", GIB)
    code, out, err = kvctl("limit", "vllm/ab12", "512M")
    assert (code, out) == (0, "")
    assert "limit 512.0 MiB is recorded, not carried out yet" in err
    assert leases(shm_dir)["ab12"].limit == 512 * MIB
    code, out, _ = kvctl("limit", "vllm/ab12", "256M", "--json")
    (order,) = json.loads(out)["orders"]
    assert (order["in_force"], order["seconds"]) == (False, None)
    assert "has not answered within" in order["warning"]
    assert order["leases"][0]["device"] == "host"


@pytest.mark.usefixtures("impatient")
def test_a_stopped_engine_is_told_apart(
    shm_dir: Path,
    hold: Callable[..., Holder],
    kvctl: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holder = hold("vllm", "ab12", GIB)
    os.kill(holder.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(inventory, "STALLED_SECONDS", 0.0)
    assert "is stopped (silent for" in kvctl("weight", "vllm/ab12", "2")[2]


@pytest.mark.usefixtures("impatient")
def test_a_groups_limit_is_on_every_member_and_an_instances_on_each_rank(
    shm_dir: Path, hold: Callable[..., Holder], kvctl: Callable[..., tuple[int, str, str]]
) -> None:
    hold("vllm", "ab12", MIB, rank=0)
    hold("vllm", "cd34", MIB, rank=0)
    hold("vllm", "cd34", MIB, rank=1)
    hold("other", "ef56", MIB)
    assert kvctl("limit-percent", "kvcached_vllm", "25")[0] == 0
    assert kvctl("limit", "vllm/cd34", "1GiB")[0] == 0
    found, _ = inventory.devices(shm_dir)
    bounds = {
        (lease.instance, lease.rank): (lease.group_limit, lease.limit) for lease in found[0].leases
    }
    assert bounds == {
        ("ab12", 0): (2 * GIB, None),
        ("cd34", 0): (2 * GIB, GIB),
        ("cd34", 1): (2 * GIB, GIB),
        ("ef56", 0): (None, None),
    }
    assert kvctl("limit", "vllm", "none")[0] == 0
    assert kvctl("limit", "vllm/cd34", "none")[0] == 0
    assert leases(shm_dir)["cd34"].limit is None
    assert leases(shm_dir)["cd34"].group_limit is None


def test_floors_that_do_not_fit_together_say_who_has_what(
    shm_dir: Path, hold: Callable[..., Holder], kvctl: Callable[..., tuple[int, str, str]]
) -> None:
    hold("vllm", "ab12", MIB, floor_bytes=6 * GIB)
    hold("vllm", "cd34", MIB, limit_bytes=GIB)
    hold("vllm", "ef56", MIB)
    code, _, err = kvctl("floor", "vllm/ef56", "3G")
    assert code == 2
    assert err == (
        "kvctl: floors of 3.0 GiB do not fit into the 8.0 GiB that engines on host can hold "
        "(vllm/ab12 has 6.0 GiB); lower one of them\n"
    )
    code, _, err = kvctl("floor", "vllm/cd34", "2G")
    assert code == 2
    assert "a floor of 2.0 GiB is above its limit of 1.0 GiB" in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("limit", "vllm", "lots"), "not a size: 'lots'"),
        (("limit", "vllm", "-1G"), "not a size: '-1G'"),
        (("floor", "vllm", "-1G"), "not a size: '-1G'"),
        (("limit", "vllm", "0"), "'none' takes the limit away"),
        (("limit", "vllm", "150%"), "150% is not above 0 and up to 100"),
        (("limit-percent", "vllm", "-5"), "-5% is not above 0 and up to 100"),
        (("weight", "vllm", "0"), "a weight of 0 is not from 0.001 to 1000000"),
        (("weight", "vllm", "nan"), "a weight of nan is not from 0.001 to 1000000"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    hold: Callable[..., Holder],
    kvctl: Callable[..., tuple[int, str, str]],
    arguments: tuple[str, ...],
    line: str,
) -> None:
    hold("vllm", "ab12", MIB)
    code, out, err = kvctl(*arguments)
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1


def test_an_unknown_name_lists_those_there_are(
    hold: Callable[..., Holder], kvctl: Callable[..., tuple[int, str, str]]
) -> None:
    hold("vllm", "ab12", MIB)
    code, _, err = kvctl("limit", "sglang", "1G")
    assert code == 3
    assert "no group 'sglang'; there are vllm/ab12" in err


def test_nothing_to_trim_is_said(
    hold: Callable[..., Holder], kvctl: Callable[..., tuple[int, str, str]]
) -> None:
    hold("vllm", "ab12", MIB)
    code, out, _ = kvctl("trim", "vllm/ab12")
    assert (code, out) == (0, "vllm/ab12: no cached prefixes and no slack to give back\n")


def test_the_dead_take_no_orders(
    hold: Callable[..., Holder], kvctl: Callable[..., tuple[int, str, str]]
) -> None:
    hold("vllm", "ab12", MIB).kill()
    code, _, err = kvctl("limit", "vllm/ab12", "1G")
    assert code == 3
    assert "'kvctl delete vllm/ab12'" in err
