"""What the launcher refuses, each in one line, and what it leaves to SGLang."""

from __future__ import annotations

import runpy

import pytest

from kvcached_sglang import launch_server


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that were run in place of our own way."""
    ran: list[str] = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **_: ran.append(name))
    monkeypatch.delenv("ENABLE_KVCACHED", raising=False)
    monkeypatch.delenv("KVCACHED_REQUIRED", raising=False)
    return ran


def installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setattr(launch_server, "installed_sglang", lambda: version)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("0.5.8", "the oldest version that works is 0.5.9"),
        ("0.4.6.post5", "the oldest version that works is 0.5.9"),
        ("nightly", "a version without numbers; works with 0.5.9 to 0.5.23"),
        (None, "SGLang is not installed here"),
    ],
)
def test_other_versions_are_refused_in_one_line(
    version: str | None,
    said: str,
    stock: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    installed(monkeypatch, version)
    assert launch_server.main() != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kvcached: ")
    assert said in line
    assert stock == []


def test_versions_with_plugins_are_launched_by_sglang(
    stock: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "0.5.14")
    assert launch_server.main() == 0
    assert stock == ["sglang.launch_server"]


def test_switched_off_is_sglangs_own_server(
    stock: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "0.5.10.post1")
    monkeypatch.setenv("ENABLE_KVCACHED", "false")
    assert launch_server.main() == 0
    assert stock == ["sglang.launch_server"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ENABLE_KVCACHED": "false", "KVCACHED_REQUIRED": "1"}, "but ENABLE_KVCACHED=false"),
        ({"ENABLE_KVCACHED": "perhaps"}, "ENABLE_KVCACHED=perhaps: allowed is true or false"),
    ],
)
def test_settings_that_cannot_be_met_stop_it(
    variables: dict[str, str],
    said: str,
    stock: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    installed(monkeypatch, "0.5.10.post1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch_server.main() != 0
    assert said in capsys.readouterr().err
    assert stock == []
