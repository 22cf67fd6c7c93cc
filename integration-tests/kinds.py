"""What is asked of every kind of KV cache: vanilla's tokens, and a line that says how it is served.

A case runs twice, without kvcached and with it. What came of it goes into the table of
docs/compatibility.md, if its tests have passed (`--kinds-results`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import elasticity
import engine
from engine import Outcome, Scenario

ELASTIC = "elastic"
STATIC = "static"
NOT_SERVED = "not served by vLLM on a CPU"

CROWD = Scenario("mixed_lengths", {"requests": 24})
PREFIXES = Scenario("shared_prefixes")
#: Swells and ebbs, and leaves no prefix.
TIDE = (Scenario("grow_and_shrink", {"requests": 24}), Scenario("forget"))


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    write: Callable[[Path], Path]
    """Writes the model below a folder."""
    outcome: str = ELASTIC
    line: str = elasticity.START_LINE
    """What the engine says: kvcached's line, or vLLM's own words where it does not serve it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    scenarios: tuple[Scenario, ...] = (CROWD, PREFIXES, *TIDE)
    settings: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 600

    def __str__(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Run:
    """A case, and what its two engines left."""

    case: Case
    vanilla: Outcome
    ours: Outcome
    leftovers: list[str]

    def tokens(self, scenario: str) -> tuple[list[Any], list[Any]]:
        """Vanilla's tokens, and ours."""
        sides = (side.result(scenario)["tokens"] for side in (self.vanilla, self.ours))
        expected, actual = map(list, sides)
        return expected, actual

    @property
    def said(self) -> str:
        """How the engine says that it is served, without what the logger puts before it."""
        lines = elasticity.start_lines(self.ours.log) + elasticity.vanilla_lines(self.ours.log)
        assert len(lines) == 1, f"it must say it once: {lines}"
        return lines[0][lines[0].index("kvcached: ") :]


def run(case: Case, models: Path, shm_dir: Path, ours: Case | None = None) -> Run:
    """Runs both engines of a case that vLLM serves; `ours` differs where they must not share a file
    of the connector's."""
    model = case.write(models)

    def side(of: Case, surroundings: Mapping[str, str]) -> Outcome:
        settings = {**surroundings, **of.settings}
        outcome = engine.run(model, of.scenarios, settings, of.timeout, **of.options)
        assert outcome.finished, outcome.last_lines()
        return outcome

    return Run(
        case,
        vanilla=side(case, elasticity.vanilla()),
        ours=side(ours or case, _with_kvcached(case, shm_dir)),
        leftovers=sorted(path.name for path in shm_dir.glob("*.row")),
    )


def _with_kvcached(case: Case, shm_dir: Path) -> dict[str, str]:
    checked = {"KVCACHED_SANITY_CHECK": "true", "KVCACHED_MAX_CACHED_TOKENS": "3200"}
    required = "true" if case.outcome == ELASTIC else "false"
    return {**elasticity.elastic(shm_dir, **checked), "KVCACHED_REQUIRED": required}


def refusal(case: Case, models: Path) -> str:
    """Starts the vanilla engine of a case that vLLM does not serve, and returns what vLLM says."""
    model = case.write(models)
    settings = {**elasticity.vanilla(), **case.settings}
    outcome = engine.run(model, case.scenarios, settings, case.timeout, **case.options)
    assert outcome.results_of(case.scenarios[0].name) is None, "vLLM does serve it"
    said = [line for line in outcome.log.splitlines() if case.line in line]
    assert said, outcome.last_lines()
    return said[-1][said[-1].index(case.line) :].strip()


class Notebook:
    """Rows of the table, which are written when a test, or all tests of an engine, have passed."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._session = request.session
        self._test = request.node.nodeid
        self._failed_before = self._session.testsfailed
        self._rows: list[dict[str, str]] = []
        path = request.config.getoption("--kinds-results")
        self._path = None if path is None else Path(path)

    def note(self, case: Case, said: str) -> None:
        self._rows.append(
            {
                "name": case.name,
                "outcome": case.outcome,
                "said": said,
                "test": f"integration-tests/{self._test.partition('[')[0]}",
                "vllm": metadata.version("vllm").partition("+")[0],
            }
        )

    def close(self) -> None:
        """Writes the rows, each in the place of the one of its name, unless a test has failed."""
        if self._path is None or self._session.testsfailed > self._failed_before:
            return
        text = self._path.read_text() if self._path.exists() else "[]"
        rows = {row["name"]: row for row in (*json.loads(text), *self._rows)}
        self._path.write_text(json.dumps([rows[name] for name in sorted(rows)], indent=2) + "\n")
