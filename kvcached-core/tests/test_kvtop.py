"""kvtop: its frame as text, its history, and the screen driven by keys over made-up engines."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_inventory import GIB, MIB, Holder, hold

from kvcached.cli import main
from kvcached.cli.kvtop.frame import device_bar
from kvcached.cli.kvtop.graph import stacked
from kvcached.cli.kvtop.history import SECONDS, History
from kvcached.cli.place import reading

__all__ = ["hold"]


def test_one_frame_is_printed_as_text(
    shm_dir: Path, hold: Callable[..., Holder], capsys: pytest.CaptureFixture[str]
) -> None:
    hold("vllm", "ab12", GIB)
    assert main(["--dir", str(shm_dir), "kvtop", "--once"]) == 0
    out = capsys.readouterr().out
    assert "host: 1.0 GiB of 8.0 GiB held by engines" in out
    assert "vllm/ab12" in out
    assert main(["--dir", str(shm_dir), "kvtop", "--once", "--demo"]) == 0
    assert "chat/llama-8b" in capsys.readouterr().out


def test_without_textual_it_draws_its_frame_until_it_is_interrupted(
    shm_dir: Path, hold: Callable[..., Holder]
) -> None:
    hold("vllm", "ab12", GIB)
    script = (
        "import sys, importlib.util\n"
        "from kvcached.cli import main\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'textual' else found(name)\n"
        f"sys.exit(main(['--dir', {str(shm_dir)!r}, 'kvtop', '-n', '0.1']))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    drawn = 0
    for line in process.stdout:
        drawn += "vllm/ab12" in line
        if drawn == 2:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert (drawn, process.returncode) == (2, 0)


def test_the_demo_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    shm = Path("/dev/shm")
    before = set(shm.glob("kvcached-demo-*"))
    assert main(["kvtop", "--once", "--demo"]) == 0
    assert set(shm.glob("kvcached-demo-*")) <= before


def test_a_bar_shows_engines_others_and_what_is_free(
    shm_dir: Path, hold: Callable[..., Holder]
) -> None:
    hold("vllm", "ab12", 4 * GIB)
    (device,) = reading(shm_dir).devices
    # 32 GiB of which 16 GiB are strangers'; the engines' capacity is 8 GiB, half of the rest.
    bar = device_bar(device, {"vllm/ab12": "red"}, 32).plain
    assert bar == "█" * 20 + "░" * 12


def test_a_bar_of_engines_that_are_bounded_far_below_the_device_is_theirs_alone(
    shm_dir: Path, hold: Callable[..., Holder]
) -> None:
    hold("vllm", "ab12", 512 * MIB, device="GPU-a")
    (device,) = reading(shm_dir).devices
    bounded = dataclasses.replace(device, capacity=GIB)
    assert device_bar(bounded, {}, 32).plain == "█" * 16 + "░" * 16


def test_history_knows_rates_and_forgets(shm_dir: Path, hold: Callable[..., Holder]) -> None:
    history = History()
    assert history.rate("vllm/ab12") is None
    holder = hold("vllm", "ab12", GIB)
    history.note(reading(shm_dir), now=100.0)
    assert history.rate("vllm/ab12") is None
    holder.__exit__(None, None, None)
    hold("vllm", "ab12", 3 * GIB)
    history.note(reading(shm_dir), now=104.0)
    assert history.rate("vllm/ab12") == GIB / 2
    assert history.held("vllm/ab12", 3) == [0, 0, 3 * GIB]
    history.note(reading(shm_dir), now=104.0 + SECONDS / 2)
    assert history.held("vllm/ab12", 3) == [0, 3 * GIB, 3 * GIB]
    history.note(reading(shm_dir), now=105.0 + 2 * SECONDS)
    assert history.held("vllm/ab12", 2) == [0, 3 * GIB]


def test_a_graph_stacks_what_everybody_held(shm_dir: Path, hold: Callable[..., Holder]) -> None:
    hold("vllm", "ab12", 4 * GIB)
    history = History()
    history.note(reading(shm_dir))
    graph = stacked(history, {"vllm/ab12": "red"}, 8 * GIB, (21, 5))
    lines = graph.plain.splitlines()
    assert lines[0].strip() == "8.0 GiB"
    assert lines[2].endswith("█")
    assert not lines[1].endswith("█")
    assert lines[4].strip().startswith("3 min ago")


def test_keys_set_a_limit_and_quit(shm_dir: Path) -> None:
    from textual.widgets import DataTable

    from kvcached.cli.kvtop.demo import made_up_engines
    from kvcached.cli.kvtop.screen import KvTop

    async def drive(directory: Path) -> None:
        app = KvTop(directory, History(), 0.2)
        async with app.run_test(size=(120, 30)) as pilot:
            await pilot.pause(0.5)
            table = app.query_one("#engines", DataTable)
            assert table.row_count == 3
            await pilot.press("question_mark")
            await pilot.pause(0.1)
            await pilot.press("escape")
            await pilot.press("down", "l")
            await pilot.pause(0.1)
            await pilot.press(*"32M", "enter")
            for _ in range(100):
                await pilot.pause(0.1)
                limits = {member.name: member.limit for member in reading(directory).instances}
                if limits["chat/qwen-4b"] is not None:
                    break
            assert limits == {
                "chat/llama-8b": None,
                "chat/qwen-4b": 32 * MIB,
                "code/coder-7b": None,
            }
            await pilot.press("t")
            await app.workers.wait_for_complete()
            await pilot.press("q")

    with made_up_engines() as directory:
        asyncio.run(drive(directory))
