"""Puts a real SGLang into a Python environment, so that it runs on a CPU.

    python -m tools.sglang_environment --python .venv/bin/python --version 0.5.23

SGLang's own CPU build needs an AMX processor and kernels that are not on PyPI. Its ordinary wheel
runs small text models on a CPU all the same, with PyTorch's own attention, where three things are
made up for: the compiled operators of torchvision (need CUDA), xgrammar's dependencies, and
``vllm._custom_ops`` and, before 0.5.14, ``sgl_kernel``, which imports name and nothing calls.
Standard library only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tools.install_steps import StepFailed, Steps
from tools.vllm_environment import pip_install

TORCH = "torch==2.13.0"
VERSIONS = (
    "0.5.9",
    "0.5.10.post1",
    "0.5.11",
    "0.5.12.post1",
    "0.5.14",
    "0.5.17",
    "0.5.20",
    "0.5.23",
)
"""The versions that the integration tests run with."""

REQUIREMENTS = Path(__file__).with_name("sglang-cpu-requirements.txt")
WITHOUT_DEPENDENCIES = ("torchvision==0.28.0", "xgrammar==0.2.8")

_OPERATORS = """

# Added by kvcached's tools/sglang_environment.py: the compiled operators need CUDA's libraries;
# the modules that follow only want them declared, and a text model calls none.
_declared = torch.library.Library("torchvision", "DEF")
for _operator in (
    "nms", "qnms", "roi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward",
    "ps_roi_align", "_ps_roi_align_backward", "ps_roi_pool", "_ps_roi_pool_backward",
    "deform_conv2d", "_deform_conv2d_backward",
):
    _declared.define(f"{_operator}(Tensor input) -> Tensor")
"""
_CUSTOM_OPS = '''"""Names that SGLang imports on a CPU and never calls. Not vLLM."""


def rotary_embedding(*args: object) -> None:
    raise NotImplementedError
'''
_SGL_KERNEL = '''"""Names that SGLang imports on a CPU and never calls. Not sgl-kernel."""

import importlib.abc
import importlib.machinery
import sys


class _Never:
    def __call__(self, *args, **kwargs):
        raise NotImplementedError

    def __getattr__(self, name):
        return _name(name)


def _name(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Never()


class _Submodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("sgl_kernel."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def exec_module(self, module):
        module.__getattr__ = _name


__getattr__ = _name
__version__ = "0"
sys.meta_path.append(_Submodules())
'''
#: They import it whatever the device.
_NEED_SGL_KERNEL = ("0.5.9", "0.5.10.post1", "0.5.11", "0.5.12.post1")


def install_sglang(python: Path, version: str, steps: Steps) -> None:
    """Install SGLang into `python`'s environment. Raises StepFailed at the first failure."""
    if not python.exists():
        raise StepFailed(f"there is no Python at {python}")
    steps.command(f"PyTorch ({TORCH})", pip_install(python, TORCH))
    steps.command(
        "what SGLang needs on a CPU",
        # torch again, so that no requirement can replace it.
        pip_install(python, TORCH, "-r", REQUIREMENTS),
    )
    steps.command(
        f"SGLang {version}",
        pip_install(python, "--no-deps", f"sglang=={version}", *WITHOUT_DEPENDENCIES),
    )
    steps.action("stand-ins for what needs CUDA", lambda: _write_stand_ins(python, version))
    steps.command(
        "SGLang answers", [python, "-c", "from sglang.srt.entrypoints.engine import Engine"]
    )


def _write_stand_ins(python: Path, version: str) -> None:
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(
        subprocess.run(
            [python, "-c", ask], check=True, capture_output=True, text=True
        ).stdout.strip()
    )
    extension = site / "torchvision" / "extension.py"
    text = extension.read_text()
    if _OPERATORS not in text:
        # Another file, in case this one is a link into a cache.
        extension.unlink()
        extension.write_text(text + _OPERATORS)
    stand_in = site / "vllm"
    stand_in.mkdir(exist_ok=True)
    (stand_in / "__init__.py").write_text("")
    (stand_in / "_custom_ops.py").write_text(_CUSTOM_OPS)
    if version in _NEED_SGL_KERNEL:
        kernels = site / "sgl_kernel"
        kernels.mkdir(exist_ok=True)
        (kernels / "__init__.py").write_text(_SGL_KERNEL)


def main() -> int:
    parser = argparse.ArgumentParser(description="Install a real SGLang for tests.")
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    parser.add_argument("--version", choices=VERSIONS, default=VERSIONS[-1])
    parser.add_argument("--log", type=Path, default=Path("build/sglang-install.log"))
    options = parser.parse_args()
    # Not resolve(): in a virtual environment python is a link to the one it was made from.
    python = options.python.absolute()
    try:
        install_sglang(python, options.version, Steps(options.log))
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
