"""The documented checks of an installation, and what importing kvcached costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kvcached import _C, vmm_ops

HEAVY = ("torch", "numpy", "vllm", "sglang", "pydantic")


def python(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_extension_loads_as_documented() -> None:
    assert python("from kvcached import _C; print('C++ extensions OK')") == "C++ extensions OK"


def test_virtual_memory_is_available_as_documented() -> None:
    script = "from kvcached.vmm_ops import is_available; print(f'VMM: {is_available()}')"
    assert python(script) == "VMM: True"


def test_this_machine_has_the_host_driver() -> None:
    assert "host" in vmm_ops.available_drivers()
    assert vmm_ops.is_available("host")


def test_an_unknown_device_has_no_driver() -> None:
    assert not vmm_ops.is_available("abacus")


def test_a_driver_that_does_not_work_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> _C.Driver:
        raise _C.Error("broken")

    monkeypatch.setattr(_C, "host_driver", broken)
    assert "host" not in vmm_ops.available_drivers()


@pytest.mark.parametrize(
    "module", ["kvcached", "kvcached._C", "kvcached.vmm_ops", "kvcached.hooks"]
)
def test_importing_needs_nothing_heavy(module: str) -> None:
    script = f"""
import importlib, importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
importlib.import_module({module!r})
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert python(script) == "[]"


def test_importing_kvcached_loads_neither_drivers_nor_settings() -> None:
    script = "import sys, kvcached; print([n for n in sys.modules if n.startswith('kvcached.')])"
    assert python(script) == "[]"
