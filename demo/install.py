"""Fills the environment this Python belongs to with all that the demo runs.

    python -m demo.install --log build/demo/install.log --engine mixed WHEEL...

WHEEL... are kvcached's own: wheel files, or the folders of its packages. SGLang gets an environment
of its own inside this one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo import sglang_engine
from demo.choices import CHOICES, SGLANG, VLLM
from demo.sglang_processor import reason_against_sglang
from tools.install_steps import StepFailed, Steps
from tools.sglang_environment import TORCH, VERSIONS, install_sglang
from tools.vllm_environment import install_vllm, pip_install

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
CONVERSION = (TORCH, "transformers>=5.16.1,<5.20.0")
"""What reads the demo's model, where vLLM does not bring it."""


def install(engines: tuple[str, ...], wheels: list[Path], log: Path) -> None:
    """Install engines, the demo's requirements and kvcached. Raises StepFailed."""
    python = Path(sys.executable)
    steps = Steps(log)
    if SGLANG in engines and (reason := reason_against_sglang()):
        raise StepFailed(reason)
    if VLLM in engines:
        install_vllm(python, steps)
    else:
        steps.command("what reads the model", pip_install(python, *CONVERSION))
    steps.command("what the demo needs", pip_install(python, "-r", REQUIREMENTS))
    # The demo itself asks the core what the ledger says.
    _install_kvcached(python, _wheels_for(VLLM if VLLM in engines else "core", wheels), steps)
    if SGLANG in engines:
        _install_sglang(_wheels_for(SGLANG, wheels), steps)


def _wheels_for(engine: str, wheels: list[Path]) -> list[Path]:
    return [wheel for wheel in wheels if "core" in wheel.name or engine in wheel.name]


def _install_sglang(wheels: list[Path], steps: Steps) -> None:
    python = sglang_engine.PYTHON
    if not python.exists():
        make = ("-m", "venv", str(sglang_engine.ENVIRONMENT))
        steps.command("an environment for SGLang", [sys.executable, *make])
    install_sglang(python, VERSIONS[-1], steps)
    _install_kvcached(python, wheels, steps)


def _install_kvcached(python: Path, wheels: list[Path], steps: Steps) -> None:
    if wheels:
        # All at once: kvcached-vllm pins its core exactly, and only this command knows where
        # that core is.
        steps.command("what kvcached needs", pip_install(python, *wheels))
        # A developer's new build keeps its version, so pip would keep the old one.
        again = pip_install(python, "--force-reinstall", "--no-deps", *wheels)
        steps.command("kvcached: " + ", ".join(wheel.name for wheel in wheels), again)


def main() -> int:
    parser = argparse.ArgumentParser(description="Install what the demo runs.")
    parser.add_argument("--log", type=Path, default=Path("build/demo/install.log"))
    parser.add_argument("--engine", choices=CHOICES, default=VLLM)
    parser.add_argument("wheels", nargs="*", type=Path)
    options = parser.parse_args()
    try:
        install(CHOICES[options.engine], options.wheels, options.log)
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
