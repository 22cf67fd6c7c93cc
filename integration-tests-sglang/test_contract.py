"""Everything that is built on is where it should be in this SGLang, whole engines apart."""

from __future__ import annotations

import importlib
from importlib.metadata import version

import pytest

from kvcached_sglang import contract, versions

pytestmark = pytest.mark.contract

LAUNCHED = versions.needs_launcher(version("sglang"))


@pytest.mark.parametrize("seam", contract.seams(LAUNCHED), ids=lambda seam: seam.name)
def test_the_contract_holds(seam: contract.Seam) -> None:
    importlib.import_module("sglang.srt.managers.scheduler")
    assert seam.wrong() is None
