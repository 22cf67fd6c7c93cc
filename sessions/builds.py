"""What several sessions build: the wheels and the native suites."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"

_built_in_this_run: set[Path] = set()


def need(session: nox.Session, program: str, package: str) -> None:
    """Ends the session with a line where a program is missing."""
    if shutil.which(program) is None:
        session.error(f"{program} is missing: apt-get install {package}")


def configure_and_test(session: nox.Session, folder: str, *options: str) -> None:
    """Builds the native library and its GoogleTest suites in build/FOLDER and runs them."""
    need(session, "g++", "g++")
    if not Path("/usr/include/gtest/gtest.h").exists():
        session.error("GoogleTest is missing: apt-get install libgtest-dev")
    session.install("cmake", "ninja")
    where = str(BUILD / folder)
    session.run(
        "cmake", "-S", "native", "-B", where, "-G", "Ninja", "-DKVCACHED_BUILD_TESTS=ON", *options
    )
    session.run("cmake", "--build", where)
    at_once = ("--parallel", str(os.cpu_count() or 1))
    session.run("ctest", "--test-dir", where, *at_once, "--output-on-failure", "--no-tests=error")


def core_wheel(session: nox.Session) -> Path:
    """The core's wheel for the session's Python, built once a run: it takes a minute."""
    tag = _tag(session)
    where = BUILD / "core" / tag
    if where not in _built_in_this_run:
        _build_wheel(session, "kvcached-core", where)
        _built_in_this_run.add(where)
    return wheel_in(session, where)


def keep_core_wheel(session: nox.Session, wheel: Path) -> None:
    """Takes a wheel of the core that was built in this run for the sessions that follow."""
    where = BUILD / "core" / _tag(session)
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    shutil.copy(wheel, where)
    _built_in_this_run.add(where)


def wheel_in(session: nox.Session, where: Path) -> Path:
    """The core's wheel for the session's Python in a folder."""
    (wheel,) = where.glob(f"kvcached_core-*-{_tag(session)}-*{platform.machine()}.whl")
    session.log(f"{wheel.name} sha256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    return wheel


def wheels(session: nox.Session, *engines: str) -> list[str]:
    """The paths of the core's wheel and of those of the packages for these engines."""
    made = [core_wheel(session)]
    for engine in engines:
        where = BUILD / "wheels" / engine
        # Each time: the results of an engine's versions are in it, and the matrix writes them.
        _build_wheel(session, f"kvcached-{engine}", where)
        made += where.glob("*.whl")
    return [str(path) for path in made]


def install(session: nox.Session, made: list[str]) -> None:
    """Installs our wheels with what they need, over older ones of the same version."""
    session.install(*made)
    session.install("--force-reinstall", "--no-deps", *made)


def _build_wheel(session: nox.Session, package: str, where: Path) -> None:
    shutil.rmtree(where, ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(where), package, silent=True)


def _tag(session: nox.Session) -> str:
    command = ("python", "-c", "import sys; print('%d%d' % sys.version_info[:2])")
    said = session.run(*command, silent=True, log=False)
    number = str(said).strip()
    return f"cp{number}-cp{number}" if number in ("310", "311") else "cp312-abi3"
