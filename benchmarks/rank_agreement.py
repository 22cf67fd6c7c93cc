"""Do the ranks of an engine hold the same extents? Read from their rows, while the engine lives."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Report, Row, Target
from benchmarks.samples import Samples
from kvcached import _C

NONE = Target(at_most=0)
#: An idle engine's pagers owe no answer after this, in seconds.
_SETTLED = 10.0


@dataclass(frozen=True)
class Agreement:
    """One engine's ranks at one moment."""

    engine: str
    committed: Sequence[int]
    """Extents that each rank has committed since the start, by rank."""
    refused: Sequence[int]
    held: Sequence[int]
    """Bytes, by rank."""
    split: int
    """Extents that some ranks have committed and others have not."""

    @property
    def rolled_back(self) -> int:
        """Extents that a rank had committed and gave back because another refused them, at least.

        Every rank answers for the same extents, so what one has committed beyond another was
        refused there.
        """
        return max(self.committed) - min(self.committed)


def read(rows: Path) -> list[Agreement]:
    """Every elastic engine with a row there."""
    found: dict[str, dict[int, _C.Row]] = defaultdict(dict)
    for path in rows.glob("*.row"):
        try:
            row = _C.Row.attach(str(path))
        except _C.Error:
            continue  # just gone
        facts = row.describe()
        if facts["mode"] == "elastic":
            found[path.name.rsplit(".", 2)[0]][facts["rank"]] = row
    return [
        _agreement(name, [ranks[rank] for rank in sorted(ranks)]) for name, ranks in found.items()
    ]


def _agreement(name: str, ranks: Sequence[_C.Row]) -> Agreement:
    states = [row.committed() for row in ranks]
    facts = [row.describe() for row in ranks]
    return Agreement(
        name,
        [int(told["commits"]) for told in facts],
        [int(told["denials"]) for told in facts],
        [int(told["held_bytes"]) for told in facts],
        sum(len(set(extent)) > 1 for extent in zip(*states, strict=True)),
    )


def settled(rows: Path) -> list[Agreement]:
    """The same once idle engines have given back what they do not keep: no rank is ahead of another
    because its pager answered first. What stays split for seconds is split for good."""
    deadline = time.monotonic() + _SETTLED
    while True:
        seen = read(rows)
        apart = any(engine.split or len(set(engine.held)) > 1 for engine in seen)
        if not apart or time.monotonic() > deadline:
            return seen
        time.sleep(0.05)


def add_rows(report: Report, engines: Sequence[Agreement]) -> None:
    """Adds what was refused by rank, and that no rank has what another has not."""
    for rank in range(max(len(engine.refused) for engine in engines)):
        refused = [engine.refused[rank] for engine in engines if rank < len(engine.refused)]
        report.add(Row(f"rank {rank}: extents refused", Samples("", refused)))
    report.add(
        Row(
            "extents refused on one rank and given back on another, at least",
            Samples("", [engine.rolled_back for engine in engines]),
        )
    )
    report.add(
        Row(
            "extents on one rank alone, at rest",
            Samples("", [engine.split for engine in engines]),
            NONE,
        )
    )
    report.add(
        Row(
            "bytes that one rank holds beyond another, at rest",
            Samples("B", [max(engine.held) - min(engine.held) for engine in engines]),
            NONE,
        )
    )
