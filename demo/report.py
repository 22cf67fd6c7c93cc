"""The two set-ups side by side, and whether the demo has shown what it claims."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from demo.budget import Budget
from demo.outcome import Outcome
from demo.sizes import in_binary_units
from demo.workload import Answer

CLAIM = 3.0
"""Where the budget is split, the slowest first token takes at least this many times as long."""


def comparison(static: Outcome, shared: Outcome, budget: Budget, engines: str) -> Table:
    """A table of what both set-ups did and held."""
    title = f"Two models, {in_binary_units(budget.shared)} for both KV caches, the same requests"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column(f"split in halves:\nvanilla {engines}", justify="right")
    table.add_column("shared:\nwith kvcached", justify="right", style="bold")

    def row(title: str, read: Callable[[Outcome], str]) -> None:
        table.add_row(title, read(static), read(shared))

    count = len(static.answers)
    row("requests", lambda outcome: str(len(outcome.answers)))
    table.add_row("equal answers", "", f"{count - len(differing(static, shared))} of {count}")
    row("time to first token, mean", lambda outcome: f"{outcome.mean_wait:.2f} s")
    row("time to first token, p99", lambda outcome: f"{outcome.p99_wait:.2f} s")
    row("output tokens/s", lambda outcome: f"{outcome.tokens_per_second:.0f}")
    row("KV memory, peak of both together", lambda outcome: in_binary_units(outcome.peak))
    row("KV memory, peak of one model", lambda outcome: in_binary_units(outcome.peak_of_one))
    row("KV memory, both idle for 1 s", lambda outcome: in_binary_units(outcome.idle))
    return table


def differing(static: Outcome, shared: Outcome) -> list[tuple[Answer, Answer]]:
    """The answers to one question that are not the same text."""
    pairs = zip(static.answers, shared.answers, strict=True)
    return [(one, other) for one, other in pairs if one.text != other.text]


def describe_difference(vanilla: Answer, elastic: Answer) -> str:
    """The question, and both answers from where they part."""
    texts = zip(vanilla.text, elastic.text, strict=False)
    same = next(
        (at for at, (one, other) in enumerate(texts) if one != other),
        min(len(vanilla.text), len(elastic.text)),
    )
    start = max(0, same - 30)
    return (
        f"{vanilla.question}\n"
        f"  vanilla:  ...{vanilla.text[start : same + 40]!r}\n"
        f"  kvcached: ...{elastic.text[start : same + 40]!r}"
    )
