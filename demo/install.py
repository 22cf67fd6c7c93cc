"""Fills the environment this Python belongs to with all that the demo runs.

    python -m demo.install --log build/demo/install.log WHEEL...

WHEEL... are kvcached's own: wheel files, or the folders of its packages.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.install_steps import StepFailed, Steps
from tools.vllm_environment import install_vllm, pip_install

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def install(wheels: list[Path], log: Path) -> None:
    """Install vLLM, the demo's requirements and kvcached. Raises StepFailed."""
    python = Path(sys.executable)
    steps = Steps(log)
    install_vllm(python, steps)
    steps.command("what the demo needs", pip_install(python, "-r", REQUIREMENTS))
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
    parser.add_argument("wheels", nargs="*", type=Path)
    options = parser.parse_args()
    try:
        install(options.wheels, options.log)
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
