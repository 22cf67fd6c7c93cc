"""All packages carry one version."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

import kvcached

REPOSITORY = Path(__file__).parents[2]
CORE = REPOSITORY / "kvcached-core"
ENGINES = ("vllm", "sglang")


def declared(package: Path) -> str:
    found = re.search(r'^version = "(.+)"$', (package / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_installed_core_is_the_one_that_its_module_says() -> None:
    assert version("kvcached-core") == kvcached.__version__


def test_the_core_declares_that_version() -> None:
    assert declared(CORE) == kvcached.__version__


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_package_has_and_demands_exactly_that_version(engine: str) -> None:
    package = REPOSITORY / f"kvcached-{engine}"
    if not package.exists():
        pytest.skip("an sdist carries one package")
    assert declared(package) == kvcached.__version__
    demands = re.findall(r'"kvcached-core([^"]*)"', (package / "pyproject.toml").read_text())
    assert demands == [f"=={kvcached.__version__}"]
    module = (package / "src" / f"kvcached_{engine}" / "__init__.py").read_text()
    assert f'__version__ = "{kvcached.__version__}"' in module
