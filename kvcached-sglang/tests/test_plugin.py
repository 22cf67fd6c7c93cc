"""What the entry point decides, in any process of SGLang's."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

import kvcached_sglang
from kvcached.compatibility import LEVELS, REFUSED
from kvcached_sglang import attachment, info, versions


@pytest.mark.parametrize("version", ["0.5.11", "0.5.14", "0.5.12.post1", "0.5.23", "0.5.23rc1"])
def test_versions_with_our_hooks_are_served(version: str) -> None:
    assert versions.reason(version) is None


@pytest.mark.parametrize("version", ["0.4.9.post6", "0.5.8", "0.5.3.post3"])
def test_older_versions_are_told_the_oldest_that_works(version: str) -> None:
    reason = versions.reason(version)
    assert reason is not None
    assert version in reason
    assert "the oldest version that works is 0.5.9" in reason


@pytest.mark.parametrize("version", ["0.5.9", "0.5.10", "0.5.10.post1"])
def test_versions_without_plugins_are_told_our_launcher(version: str) -> None:
    assert versions.needs_launcher(version)
    reason = versions.reason(version)
    assert reason is not None
    assert "python -m kvcached_sglang.launch_server" in reason


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("0.5.8", "refused"),
        ("0.5.13", "contract only"),
        ("0.5.23", "verified on CPU"),
        ("0.5.17", "verified on GPU"),
        ("0.5.99", "contract only"),
        ("nightly", "refused"),
    ],
)
def test_the_doctor_is_told_how_well_a_version_is_known(
    version: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "installed_sglang", lambda: version)
    assert info.kvcached_engine_info().level == level


def test_a_version_without_numbers_is_refused_with_the_range() -> None:
    reason = versions.reason("nightly")
    assert reason is not None
    assert "0.5.9 to 0.5.23" in reason


def test_every_result_says_what_was_run_or_why_not() -> None:
    assert versions.results()
    for number, result in versions.results().items():
        assert set(result.levels) == {"cpu", "cuda"}, number
        assert set(result.levels.values()) <= set(LEVELS), number
        assert result.reason or REFUSED not in result.levels.values(), number


@pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="needs SGLang")
def test_an_unknown_version_is_served_with_a_line_if_its_contract_holds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("sglang.srt.managers.scheduler")
    monkeypatch.setattr(kvcached_sglang, "installed_sglang", lambda: "0.5.99")
    monkeypatch.setattr(attachment, "attach", lambda: None)
    assert kvcached_sglang._attach() is None
    assert "SGLang 0.5.99 was not run with this version of kvcached on a" in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="needs SGLang")
def test_an_unknown_version_whose_contract_is_broken_is_told_what_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = pytest.importorskip("sglang.srt.managers.scheduler")
    monkeypatch.setattr(kvcached_sglang, "installed_sglang", lambda: "0.5.99")
    monkeypatch.delattr(scheduler.Scheduler, "run_batch")
    reason = kvcached_sglang._attach()
    assert reason is not None
    assert "SGLang 0.5.99 is installed, which differs from what kvcached builds on" in reason
    assert "run_batch" in reason


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
        "print(sorted({'torch', 'sglang', 'kvcached._C'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_entry_point_is_where_sglang_looks() -> None:
    from importlib.metadata import entry_points

    (found,) = entry_points(group="sglang.srt.plugins", name="kvcached")
    assert found.load() is kvcached_sglang.register
