"""The tests that docs/troubleshooting.md names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs/troubleshooting.md"

if not PAGE.exists():
    pytest.skip("an sdist carries no documentation", allow_module_level=True)

NAMED = re.findall(r"`([\w/.-]+\.py)::(\w+)`", PAGE.read_text())


def test_it_names_tests() -> None:
    assert len(NAMED) > 20


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_a_named_test_exists(file: str, name: str) -> None:
    assert f"\ndef {name}(" in (REPOSITORY / file).read_text()


def test_no_test_is_named_without_its_file() -> None:
    assert re.findall(r"`(test_\w+)`", PAGE.read_text()) == []
