"""Everything the repository can check of itself.

`nox` runs what continuous integration runs; `nox -l` lists the rest.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent))  # `nox` by itself does not look here

from sessions import matrix, native, publishing, sglang, vllm
from sessions.builds import BUILD, ROOT, install, wheels
from sessions.environments import vllm_environment

__all__ = ["matrix", "native", "publishing", "sglang", "vllm"]  # nox takes them from there

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "native", "sanitize", "core", "sglang-core", "vllm", "contract"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

CLANG_FORMAT = "clang-format==23.1.5"
LINT = ("ruff==0.17.6", "mypy==2.4.1", "types-psutil", "nox")
# What the checked code imports and mypy follows; engines and PyTorch it does not.
TYPED = (
    "aiohttp",
    "httpx",
    "pluggy",
    "prometheus_client",
    "pydantic-settings",
    "pytest",
    "rich",
    "textual",
    "typer",
)


def _cpp_sources() -> list[str]:
    found = [*ROOT.glob("native/**/*.cpp"), *ROOT.glob("native/**/*.hpp")]
    return [str(path.relative_to(ROOT)) for path in sorted(found)]


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, lint and types of everything."""
    session.install(CLANG_FORMAT, *LINT, *TYPED)
    session.run("clang-format", "--dry-run", "--Werror", *_cpp_sources())
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    # Folders of flat modules, as pytest imports them.
    for folder, path in (
        ("integration-tests", ".:../kvcached-vllm/src"),
        ("integration-tests-sglang", ".:../integration-tests:../kvcached-sglang/src"),
    ):
        with session.chdir(folder):
            session.run(
                "mypy",
                "--config-file",
                "../pyproject.toml",
                ".",
                env={"MYPYPATH": f"{path}:../kvcached-core/src:../kvcached-sglang/src"},
            )


@nox.session
def demo(session: nox.Session) -> None:
    """The demo, in a fresh environment. `nox -s demo -- --model PATH_OR_NAME` for your model,
    `-- --engine sglang` for SGLang, `-- --engine mixed` for a server of each engine."""
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("--engine", default="vllm")
    engine = chosen.parse_known_args(session.posargs)[0].engine
    options = ("--log", str(BUILD / "demo/install.log"), "--engine", engine)
    session.run("python", "-m", "demo.install", *options, *wheels(session, "vllm", "sglang"))
    # After Ctrl-C it has servers to stop; nox would kill it half a second later.
    session.run(
        "python", "-m", "demo", *session.posargs, interrupt_timeout=60, terminate_timeout=60
    )


@nox.session
def bench(session: nox.Session) -> None:
    """A benchmark: `nox -s bench -- NAME`, with its own options behind. `page` makes
    docs/benchmarks.md of the results that are there."""
    if not session.posargs:
        names = (
            "pool|schedule|pager|driver|layouts|growth|interference|ledger|reclaim|solo|sharing|"
        )
        names += "stranger|tokens|ranks|instances|rank_killed|page"
        session.error(f"name a benchmark: nox -s bench -- {names} [OPTIONS]")
    session.install("cmake", "ninja")  # `ledger` builds a native program
    vllm_environment(session, "benchmarks/requirements.txt")
    name, *options = session.posargs
    session.run("python", "-m", f"benchmarks.{name}", *options)


@nox.session
def reference(session: nox.Session) -> None:
    """Regenerates docs/reference/settings.md and docs/metrics.md from the code, and the tables of
    docs/compatibility.md from the results of the matrix and of `vllm-kinds`."""
    core, *engines = wheels(session, "vllm", "sglang")
    install(session, [f"{core}[telemetry]", *engines])
    session.run("python", "-m", "tools.settings_reference", "docs/reference/settings.md")
    session.run("python", "-m", "tools.metrics_reference", "docs/metrics.md")
    session.run("python", "-m", "tools.compatibility_page", "docs/compatibility.md")


@nox.session(name="format")
def format_(session: nox.Session) -> None:
    """Formats everything in place."""
    session.install(CLANG_FORMAT, "ruff==0.17.6")
    session.run("clang-format", "-i", *_cpp_sources())
    session.run("ruff", "format")
    session.run("ruff", "check", "--fix")


# Build tools inherit it: as many compilers as processors; Ninja would take two more.
os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 2))
