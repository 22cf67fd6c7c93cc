"""Sessions with real vLLM."""

from __future__ import annotations

import sys

import nox

from sessions.builds import install, wheels
from sessions.environments import removed_afterwards, vllm_environment


@nox.session
def vllm(session: nox.Session) -> None:
    """The newest vLLM that serves on a CPU: whole engines under every load. Its contract tests ask
    less of the same and are left to `matrix`, the slow ones to `vllm-slow`.

    `nox -s vllm -- ARGUMENTS` passes arguments to pytest.
    """
    with removed_afterwards(session, only_in_ci=True):
        vllm_environment(session, "integration-tests/requirements.txt")
        session.run("pytest", "-q", "kvcached-vllm/tests")
        arguments = session.posargs or ["-m", "not slow and not contract and not kinds"]
        session.run("pytest", "-v", "--durations=10", "integration-tests", *arguments)


@nox.session(name="vllm-kinds")
def vllm_kinds(session: nox.Session) -> None:
    """Kinds of KV cache and features of vLLM, each with real engines. Half an hour on two cores.

    What came of it goes to integration-tests/kinds.json, of which `nox -s reference` makes a table
    in docs/compatibility.md. `nox -s vllm-kinds -- ARGUMENTS` passes arguments to pytest.
    """
    needs = ("integration-tests/requirements.txt", "integration-tests/kinds-requirements.txt")
    vllm_environment(session, *needs)
    results = ("--kinds-results", "integration-tests/kinds.json")
    session.run("pytest", "-v", "-m", "kinds", "integration-tests", *results, *session.posargs)


@nox.session(name="vllm-0.26", python="3.12")
def vllm_026(session: nox.Session) -> None:
    """The contract with vLLM 0.26, over its real CUDA build, which loads without a GPU. Downloads
    several GB. Beside a GPU, what needs one runs, too."""
    session.install("vllm==0.26.0", "pytest")
    install(session, wheels(session, "vllm"))
    layout = ("allocation", "coordinator", "extent_layout", "keys_apart", "kv_placement", "supply")
    steps = ("launches", "sanity", "sleep", "waking", "warm_up", "working_memory", "zeroing")
    files = [
        f"kvcached-vllm/tests/test_{name}.py" for name in ("contract", "versions", *layout, *steps)
    ]
    session.run("pytest", "-q", *files)


@nox.session(name="vllm-slow", venv_backend="none")
def vllm_slow(session: nox.Session) -> None:
    """Every integration test but those of `vllm-kinds`, the slow ones too."""
    session.run(sys.executable, "-m", "nox", "-s", "vllm", "--", "-m", "not kinds", external=True)
