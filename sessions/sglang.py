"""Sessions with kvcached-sglang, without SGLang and with real SGLang."""

from __future__ import annotations

import nox

from sessions.builds import install, wheels
from sessions.environments import sglang_environment
from sessions.versions import OTHER_SGLANG_VERSIONS, SGLANG_VERSIONS


@nox.session(name="sglang-core")
def sglang_core(session: nox.Session) -> None:
    """What kvcached-sglang does without SGLang around it, schedules of four ranks among it.

    `nox -s sglang-core -- 10000` runs so many of them.
    """
    session.install("torch==2.13.0", "numpy", "pytest", "greenlet")
    install(session, wheels(session, "sglang"))
    schedules = session.posargs[0] if session.posargs else "1000"
    session.run("pytest", "-q", "kvcached-sglang/tests", env={"SCHEDULES": schedules})


@nox.session
@nox.parametrize("version", SGLANG_VERSIONS)
def sglang(session: nox.Session, version: str) -> None:
    """Real SGLang on a CPU: its pools, allocators and whole engines. Not part of `nox` alone.

    `nox -s "sglang(version='0.5.23')" -- ARGUMENTS` passes arguments to pytest;
    `-m "slow or not slow"` runs every test.
    """
    _real_sglang(session, version)


@nox.session(name="sglang-others")
@nox.parametrize("version", OTHER_SGLANG_VERSIONS)
def sglang_others(session: nox.Session, version: str) -> None:
    """The same with the other versions that are served."""
    _real_sglang(session, version)


def _real_sglang(session: nox.Session, version: str) -> None:
    sglang_environment(session, version)
    session.run("pytest", "-q", "kvcached-sglang/tests")
    arguments = session.posargs or ["-m", "not slow"]
    session.run("pytest", "-v", "--durations=10", "integration-tests-sglang", *arguments)
