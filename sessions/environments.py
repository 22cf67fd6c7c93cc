"""Environments with a real engine and our wheels: several GB each, and removed where nobody runs
the session again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nox

from sessions.builds import BUILD, install, wheels


def vllm_environment(session: nox.Session, *requirements: str, version: str | None = None) -> None:
    """vLLM and our wheels in the session's environment. Minutes, the first time."""
    marker = Path(session.virtualenv.location) / "vllm-installed"
    if not marker.exists():
        python = str(Path(session.virtualenv.location) / "bin" / "python")
        log = str(BUILD / f"{session.name}-install.log")
        options = ["--python", python, "--log", log]
        if version is not None:
            options += ["--version", version]
        session.run("python", "-m", "tools.vllm_environment", *options)
        for file in requirements:
            session.install("-r", file)
        marker.touch()
    install(session, wheels(session, "vllm"))


def sglang_environment(session: nox.Session, version: str) -> None:
    """SGLang and our wheels in the session's environment. Minutes, the first time."""
    marker = Path(session.virtualenv.location) / "sglang-installed"
    if not marker.exists():
        python = str(Path(session.virtualenv.location) / "bin" / "python")
        log = str(BUILD / f"sglang-{version}-install.log")
        options = ("--python", python, "--version", version, "--log", log)
        session.run("python", "-m", "tools.sglang_environment", *options)
        session.install("pytest")
        marker.touch()
    install(session, wheels(session, "sglang"))


@contextmanager
def removed_afterwards(session: nox.Session, *, only_in_ci: bool = False) -> Iterator[None]:
    """Removes the session's environment when its commands have run, passed or failed.

    An engine with a CUDA build of PyTorch takes several GB; a few of them fill the disk of a
    runner. `only_in_ci` keeps the environment where CI is not set, for the next run there.
    """
    try:
        yield
    finally:
        if not only_in_ci or os.environ.get("CI"):
            session.log("removing this session's environment")
            shutil.rmtree(session.virtualenv.location, ignore_errors=True)
