"""Which versions of vLLM are served, and with which words."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcached.compatibility import LEVELS, REFUSED
from kvcached_vllm import contract, versions

REPOSITORY = Path(__file__).parents[2]
RESULTS = {
    "0.26": {"version": "0.26.0", "levels": {"cpu": "verified on CPU", "cuda": "verified on GPU"}},
    "0.30": {
        "version": "0.30.0",
        "levels": {"cpu": "refused", "cuda": "refused"},
        "reason": "test_x fails",
    },
    "0.31": {"version": "0.31.0", "levels": {"cpu": "refused", "cuda": "contract only"}},
    "0.32": {"version": "0.32.0", "levels": {"cpu": "verified on CPU", "cuda": "contract only"}},
    "0.33": {"version": "0.33.0", "levels": {"cpu": "contract only", "cuda": "contract only"}},
}


def forget() -> None:
    versions.results.cache_clear()
    versions._broken.cache_clear()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Made-up results, and what is wrong with the installed vLLM: nothing, until it is filled."""
    found: list[str] = []
    for name, result in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    monkeypatch.setattr(versions, "RESULTS", tmp_path)
    monkeypatch.setattr(contract, "broken", lambda sources, device=None: list(found))
    forget()
    yield found
    forget()


def test_a_version_that_was_run_is_served_without_a_word(broken: list[str]) -> None:
    broken.append("never asked")
    assert versions.reason("0.26.3") is None
    assert versions.caution("0.26.0", "cpu") is versions.caution("0.26.0", "cuda") is None
    assert versions.device_reason("0.26.0", "cuda") is None


@pytest.mark.parametrize("version", ["0.27.0", "0.33.0", "0.34.1rc1", "dev"])
def test_any_other_is_served_with_a_line_if_its_contract_holds(
    broken: list[str], version: str
) -> None:
    assert versions.reason(version) is None
    line = versions.caution(version, "cpu")
    assert line is not None
    assert f"vLLM {version} was not run" in line


@pytest.mark.parametrize("version", ["0.27.0", "0.33.0", "0.34.1rc1", "dev"])
def test_and_refused_in_one_line_that_names_what_broke_if_not(
    broken: list[str], version: str
) -> None:
    broken += ["the free queue: it has a new method", "another"]
    reason = versions.reason(version)
    assert reason is not None
    assert "the free queue: it has a new method (and 1 more)" in reason
    assert "\n" not in reason


def test_a_version_before_the_oldest_is_told_which_that_is(broken: list[str]) -> None:
    oldest = ".".join(map(str, versions.OLDEST))
    for version in ("0.8.5", "0.7.3"):
        reason = versions.reason(version)
        assert reason is not None
        assert f"the oldest version that works is {oldest}" in reason


def test_a_version_that_failed_is_refused_with_what_failed(broken: list[str]) -> None:
    assert "test_x fails" in str(versions.reason("0.30.0"))
    assert versions.reason("0.31.0") is None, "one device is served"
    assert versions.device_reason("0.31.0", "cpu") is not None
    assert versions.device_reason("0.31.0", "cuda") is None


def test_a_device_on_which_nobody_ran_it_gets_a_line_or_a_reason(broken: list[str]) -> None:
    assert "on a GPU" in str(versions.caution("0.32.0", "cuda"))
    broken.append("how the GPU worker sizes its cache: gone")
    assert "how the GPU worker sizes" in str(versions.device_reason("0.32.0", "cuda"))
    assert versions.device_reason("0.32.0", "cpu") is None


def test_every_recorded_result_says_what_it_must() -> None:
    assert versions.results()
    for number, result in versions.results().items():
        assert set(result.levels) == {"cpu", "cuda"}, number
        assert set(result.levels.values()) <= set(LEVELS), number
        assert result.reason or REFUSED not in result.levels.values(), number
        assert result.refused or (result.seconds and result.date and result.ran), number
        assert result.refused or number >= versions.OLDEST, number


def test_the_page_is_made_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (REPOSITORY / "tools").is_dir():
        pytest.skip("not in the repository")
    monkeypatch.syspath_prepend(str(REPOSITORY))
    sys.modules.pop("tools", None)
    page = importlib.import_module("tools.compatibility_page")
    assert page.page() == page.PAGE.read_text(), "run: nox -s reference"
