"""One benchmark's results: rows of a table for the reader, JSON with every sample."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.samples import Samples

RESULTS = Path(__file__).parent / "results"

#: What `--json` alone means: a file of ours under RESULTS.
_OWN_NAME = "-"


@dataclass(frozen=True)
class Target:
    """The bound that a row's figure has to keep: its median, or another percentile."""

    at_most: float | None = None
    at_least: float | None = None
    percentile: float = 50

    def met_by(self, value: float) -> bool:
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )

    def __str__(self) -> str:
        which = "" if self.percentile == 50 else f"p{self.percentile:g} "
        if self.at_most is not None:
            return f"{which}<= {self.at_most:g}"
        return f"{which}>= {self.at_least:g}"


@dataclass(frozen=True)
class Row:
    """One line of the table. `figure` is what the target, where there is one, is held against."""

    name: str
    figure: Samples
    target: Target | None = None
    parts: dict[str, Samples] = field(default_factory=dict)
    """What the figure was made of, or what helps to read it."""
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        if self.target is None:
            return None
        return self.target.met_by(self.figure.percentile(self.target.percentile))

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "figure": self.figure.as_dict(),
            "target": None if self.target is None else str(self.target),
            "passed": self.passed,
            "parts": {name: part.as_dict() for name, part in self.parts.items()},
            "facts": self.facts,
        }


class Report:
    """Collects rows, prints them and writes them down."""

    def __init__(self, benchmark: str, arguments: argparse.Namespace) -> None:
        self._benchmark = benchmark
        self._arguments = vars(arguments)
        self._began = datetime.now(timezone.utc)
        self._machine = machine.facts()
        self._rows: list[Row] = []
        self._facts: dict[str, object] = {}
        self._failures: dict[str, str] = {}

    def add(self, row: Row) -> None:
        self._rows.append(row)

    def fail(self, name: str, reason: str) -> None:
        """A part that could not be measured; the others go on, and the target counts as missed."""
        self._failures[name] = reason

    def note(self, **facts: object) -> None:
        """Facts about the whole run, for the JSON."""
        self._facts.update(facts)

    def show(self, title: str) -> None:
        """Prints the rows. Figures are medians with their quartiles."""
        table = Table(title=title, title_justify="left")
        table.add_column("")
        parts = dict.fromkeys(name for row in self._rows for name in row.parts)
        for name in parts:
            table.add_column(name, justify="right")
        for heading in ("median", "quartiles", "p90", "p99"):
            table.add_column(heading, justify="right")
        table.add_column("target")
        for row in self._rows:
            figure = row.figure
            table.add_row(
                row.name,
                *(_text(row.parts[name]) if name in row.parts else "" for name in parts),
                _text(figure),
                f"{_number(figure.percentile(25))} .. {_number(figure.percentile(75))}",
                _number(figure.percentile(90)),
                _number(figure.percentile(99)),
                _verdict(row),
            )
        console = Console()
        if not console.is_terminal:
            console = Console(width=160)
        console.print(table)
        console.print(
            f"{self._machine['cpu']}, {self._machine['cores']} cores, {self._machine['kernel']}; "
            f"load when started {os_load(self._machine)}"
        )

    def write(self, path: Path) -> None:
        """Writes everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "benchmark": self._benchmark,
            "began": self._began.isoformat(timespec="seconds"),
            "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "arguments": self._arguments,
            "machine": self._machine,
            "load_average_at_end": machine.facts()["load_average"],
            "versions": machine.versions(),
            **self._facts,
            "failures": self._failures,
            "passed": self._passed,
            "rows": [row.as_dict() for row in self._rows],
        }
        path.write_text(json.dumps(document, indent=1, default=str) + "\n")

    def finish(self, title: str) -> int:
        """Prints, writes where `--json` asks for it, and returns the program's exit status: 1
        where a target was missed or a part could not be measured."""
        self.show(title)
        for name, reason in self._failures.items():
            print(f"not measured: {name}: {reason}")
        wanted = self._arguments.get("json")
        if wanted is not None:
            stamp = self._began.strftime("%Y-%m-%dT%H%M%SZ")
            own = RESULTS / f"{self._benchmark}-{stamp}.json"
            path = own if wanted == _OWN_NAME else Path(wanted)
            self.write(path)
            print(f"written: {path}")
        return int(not self._passed)

    @property
    def _passed(self) -> bool:
        return not self._failures and all(row.passed is not False for row in self._rows)


def arguments_of(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const=_OWN_NAME,
        metavar="PATH",
        help="write every sample there; without PATH, to benchmarks/results/",
    )
    parser.add_argument(
        "--quick", action="store_true", help="few rounds: to see that it works, not to quote"
    )
    return parser


def os_load(facts: dict[str, object]) -> str:
    """The load averages in one phrase."""
    loads = facts["load_average"]
    assert isinstance(loads, tuple)
    return ", ".join(f"{load:.1f}" for load in loads)


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def _text(samples: Samples) -> str:
    unit = "" if samples.unit == "ratio" else f" {samples.unit}"
    return _number(samples.median) + unit


def _verdict(row: Row) -> str:
    if row.target is None:
        return ""
    colour, word = ("green", "met") if row.passed else ("red", "MISSED")
    return f"{row.target} [{colour}]{word}[/{colour}]"
