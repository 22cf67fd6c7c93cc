"""The generated pages of docs/ say what the code says."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("tool", "page"),
    [
        ("tools.settings_reference", "docs/reference/settings.md"),
        ("tools.metrics_reference", "docs/metrics.md"),
    ],
)
def test_a_generated_page_is_up_to_date(
    tool: str, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (REPOSITORY / "tools").is_dir():
        pytest.skip("not in the repository")
    monkeypatch.syspath_prepend(str(REPOSITORY))
    sys.modules.pop("tools", None)
    written = (REPOSITORY / page).read_text()
    assert importlib.import_module(tool).page() == written, "run: nox -s reference"
