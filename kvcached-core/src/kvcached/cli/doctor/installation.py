"""Whether what is installed belongs together, and is ours."""

from __future__ import annotations

import base64
import hashlib
import platform
import site
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

import kvcached
from kvcached.cli.doctor.finding import Finding, fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The wheels of this project.
PACKAGES = ("kvcached-core", "kvcached-vllm", "kvcached-sglang")
#: Another project's, with our import name.
PEER = "kvcached"


def installed() -> dict[str, Distribution]:
    """Those of our wheels that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
    return found


def reinstall(ours: dict[str, Distribution]) -> str:
    """The command that puts our files back."""
    names = [name for name in PACKAGES if name in ours] or ["kvcached-core", "kvcached-vllm"]
    return f"pip install --force-reinstall {' '.join(names)}"


def check() -> Iterator[Finding]:
    """Versions, the peer project, and files that somebody else has overwritten."""
    ours = installed()
    yield ok("python", f"Python {platform.python_version()}, kvcached {kvcached.__version__}")
    yield from _versions(ours)
    yield from _peer(ours)
    yield from _overwritten(ours)


def _versions(ours: dict[str, Distribution]) -> Iterator[Finding]:
    versions = {name: found.version for name, found in ours.items()}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    if "kvcached-core" not in ours:
        yield warn(
            "packages",
            f"kvcached runs from {Path(kvcached.__file__).parent}, not from an installed wheel",
            "pip install kvcached-core",
        )
    elif len({*versions.values(), kvcached.__version__}) > 1:
        yield fail(
            "packages",
            f"versions differ: {told}, imported {kvcached.__version__}",
            reinstall(ours),
        )
    else:
        yield ok("packages", told)


def _peer(ours: dict[str, Distribution]) -> Iterator[Finding]:
    advice = f"pip uninstall -y {PEER}; {reinstall(ours)}"
    try:
        peer = distribution(PEER)
    except PackageNotFoundError:
        pass
    else:
        yield fail(
            "peer",
            f"the distribution {PEER} {peer.version} is another project with the same import name, "
            "and patches engines",
            advice,
        )
        return
    patching = sorted(_patching_files(ours))
    if patching:
        yield fail(
            "peer",
            f"{patching[0]} runs kvcached code when Python starts, and is not ours",
            f"{advice}; rm {' '.join(map(str, patching))}",
        )
    else:
        yield ok("peer", f"no other project's {PEER} is installed")


def _patching_files(ours: dict[str, Distribution]) -> Iterator[Path]:
    owned = {
        Path(str(file.locate())).resolve()
        for found in ours.values()
        for file in found.files or ()
        if file.suffix == ".pth"
    }
    for folder in {*site.getsitepackages(), site.getusersitepackages()}:
        for path in Path(folder).glob("*.pth"):
            if path.resolve() in owned:
                continue
            lines = path.read_text(errors="replace").splitlines()
            # Other lines are directories; only these are run.
            if any(line.startswith("import") and "kvcached" in line for line in lines):
                yield path


def _overwritten(ours: dict[str, Distribution]) -> Iterator[Finding]:
    core = ours.get("kvcached-core")
    if core is None:
        return
    changed = []
    checked = 0
    for file in core.files or ():
        if file.hash is None:
            continue
        checked += 1
        path = Path(str(file.locate()))
        if not path.is_file() or _digest(path, file.hash.mode) != file.hash.value:
            changed.append(str(file))
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        yield fail(
            "files",
            f"{changed[0]}{more} of kvcached-core {core.version} is missing or not what was "
            "installed: another package has overwritten it",
            reinstall(ours),
        )
    else:
        yield ok("files", f"{checked} files of kvcached-core are as they were installed")
    ours_in = Path(str(core.locate_file("kvcached/__init__.py")))
    imported = Path(kvcached.__file__)
    if ours_in.is_file() and not ours_in.samefile(imported):
        yield fail(
            "files",
            f"'import kvcached' finds {imported.parent}, not the installed {ours_in.parent}",
            "take the other out of PYTHONPATH, or leave its directory",
        )


def _digest(path: Path, mode: str) -> str:
    digest = hashlib.new(mode, path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
