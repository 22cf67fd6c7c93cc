"""What packages may add to kvcached."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvcached import _C, hooks


@pytest.fixture
def register() -> Iterator[Callable[[object], object]]:
    """Registers plugins for one test."""
    made: list[object] = []

    def register_one(plugin: object) -> object:
        hooks.manager().register(plugin)
        made.append(plugin)
        return plugin

    yield register_one
    for plugin in made:
        hooks.manager().unregister(plugin)


class Listener:
    def __init__(self) -> None:
        self.heard: list[hooks.Event] = []

    @hooks.hookimpl
    def kvcached_on_event(self, event: hooks.Event) -> None:
        self.heard.append(event)


class Deaf:
    @hooks.hookimpl
    def kvcached_on_event(self) -> None:
        raise RuntimeError("no ears")


def test_the_host_driver_is_there_without_any_plugin() -> None:
    driver = hooks.driver_for("cpu")
    assert driver.name == "host"
    assert driver.memory_info()[1] > 0


def test_a_device_that_nobody_drives_is_refused_by_name() -> None:
    with pytest.raises(_C.Error, match="'abacus'"):
        hooks.driver_for("abacus")


def test_a_plugin_brings_a_driver_for_its_device(register: Callable[[object], object]) -> None:
    class Abacus:
        @hooks.hookimpl
        def kvcached_driver(self, device: str, ordinal: int) -> _C.Driver | None:
            return _C.host_driver((ordinal + 1) << 20) if device == "abacus" else None

    register(Abacus())
    assert hooks.driver_for("abacus", 2).memory_info()[1] == 3 << 20


def test_a_plugin_comes_before_the_built_in_drivers(register: Callable[[object], object]) -> None:
    class Smaller:
        @hooks.hookimpl
        def kvcached_driver(self, device: str) -> _C.Driver | None:
            return _C.host_driver(7 << 20) if device == "cpu" else None

    register(Smaller())
    assert hooks.driver_for("cpu").memory_info()[1] == 7 << 20


def test_listeners_hear_events(register: Callable[[object], object]) -> None:
    assert not hooks.has_listeners()
    listener = Listener()
    register(listener)
    assert hooks.has_listeners()
    event = hooks.Event("commit", "engine", extents=2, bytes=128 << 10)
    hooks.emit(event)
    assert listener.heard == [event]


def test_a_failing_listener_is_logged_and_the_others_still_hear(
    register: Callable[[object], object], caplog: pytest.LogCaptureFixture
) -> None:
    before, after = Listener(), Listener()
    for plugin in (before, Deaf(), after):
        register(plugin)
    with caplog.at_level(logging.ERROR, "kvcached"):
        hooks.emit(hooks.Event("denied", "engine"))
    assert [event.kind for event in before.heard + after.heard] == ["denied", "denied"]
    (record,) = caplog.records
    assert "denied" in record.getMessage()
    assert record.exc_info is not None
    assert "no ears" in str(record.exc_info[1])


def test_an_event_without_listeners_is_no_error() -> None:
    hooks.emit(hooks.Event("release", "engine"))


def test_a_misspelt_hook_is_refused() -> None:
    class Misspelt:
        @hooks.hookimpl
        def kvcached_on_events(self) -> None: ...

    plugin = Misspelt()
    hooks.manager().register(plugin)
    try:
        with pytest.raises(Exception, match="unknown hook 'kvcached_on_events'"):
            hooks.manager().check_pending()
    finally:
        hooks.manager().unregister(plugin)


def test_installed_plugins_are_found_by_their_entry_point(tmp_path: Path) -> None:
    (tmp_path / "abacus.py").write_text(
        "from kvcached.hooks import EngineInfo, hookimpl\n"
        "@hookimpl\n"
        "def kvcached_engine_info():\n"
        "    return EngineInfo('abacus', '1.0', 'any', 'verified')\n"
    )
    metadata = tmp_path / "abacus-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: abacus\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[kvcached]\nabacus = abacus\n")
    script = (
        "from kvcached import hooks\n"
        "print([info.name for info in hooks.manager().hook.kvcached_engine_info()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'abacus'" in done.stdout
