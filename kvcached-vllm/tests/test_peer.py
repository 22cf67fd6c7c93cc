"""Another project's distribution with our import name in the same environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import kvcached_vllm


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which the peer's distribution is installed."""
    folder = tmp_path / "kvcached-0.1.6.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: kvcached\nVersion: 0.1.6\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("peer")
def test_it_is_refused_in_one_line_with_the_commands(
    set_environment: Callable[..., None],
) -> None:
    set_environment(ENABLE_KVCACHED="true")
    with pytest.raises(kvcached_vllm.NotElastic) as refusal:
        kvcached_vllm.register()
    (line,) = str(refusal.value).splitlines()
    assert "'kvcached' 0.1.6" in line
    assert "pip uninstall -y kvcached && pip install --force-reinstall" in line
    assert kvcached_vllm.platform() is None


@pytest.mark.usefixtures("peer")
def test_it_is_nothing_to_an_engine_without_kvcached(set_environment: Callable[..., None]) -> None:
    set_environment(ENABLE_KVCACHED="false")
    kvcached_vllm.register()


def test_nothing_is_refused_without_it() -> None:
    assert kvcached_vllm.peer_installed() is None
