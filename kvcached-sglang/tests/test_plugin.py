"""What the entry point decides, in any process of SGLang's."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kvcached_sglang
from kvcached_sglang import info, version_reason


@pytest.mark.parametrize("version", ["0.5.11", "0.5.14", "0.5.12.post1", "0.5.23", "0.5.23rc1"])
def test_versions_with_our_hooks_are_served(version: str) -> None:
    assert version_reason(version) is None


@pytest.mark.parametrize("version", ["0.4.9.post6", "0.5.8", "0.5.3.post3"])
def test_older_versions_are_told_the_oldest_that_works(version: str) -> None:
    reason = version_reason(version)
    assert reason is not None
    assert version in reason
    assert "0.5.9 and later" in reason


@pytest.mark.parametrize("version", ["0.5.9", "0.5.10", "0.5.10.post1"])
def test_versions_without_plugins_are_told_our_launcher(version: str) -> None:
    assert kvcached_sglang.needs_launcher(version)
    reason = version_reason(version)
    assert reason is not None
    assert "python -m kvcached_sglang.launch_server" in reason


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("0.5.8", "refused"),
        ("0.5.10.post1", "contract"),
        ("0.5.12", "contract"),
        ("0.5.24", "refused"),
    ],
)
def test_the_doctor_is_told_what_is_served(
    version: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "installed_sglang", lambda: version)
    assert info.kvcached_engine_info().level == level


@pytest.mark.parametrize("version", ["0.5.24", "0.6.0", "nightly"])
def test_unknown_versions_are_refused_with_the_range(version: str) -> None:
    reason = version_reason(version)
    assert reason is not None
    assert "0.5.11 up to, not including, 0.5.24" in reason


def run_register(**environment: str) -> subprocess.CompletedProcess[str]:
    code = "import kvcached_sglang as k; k.register(); print('running')"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_switched_off_and_required_at_once_stops_the_engine() -> None:
    done = run_register(ENABLE_KVCACHED="false", KVCACHED_REQUIRED="true")
    assert done.returncode != 0
    assert "KVCACHED_REQUIRED=true, but ENABLE_KVCACHED=false" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_variable_that_does_not_parse_stops_the_engine() -> None:
    done = run_register(KVCACHED_REQUIRED="perhaps")
    assert done.returncode != 0
    assert "KVCACHED_REQUIRED=perhaps: allowed is true or false" in done.stderr


def test_a_process_that_schedules_nothing_loads_nothing() -> None:
    code = (
        "import sys, kvcached_sglang as k; k.register(); "
        "print(sorted({'torch', 'sglang', 'kvcached'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_entry_point_is_where_sglang_looks() -> None:
    from importlib.metadata import entry_points

    (found,) = entry_points(group="sglang.srt.plugins", name="kvcached")
    assert found.load() is kvcached_sglang.register
