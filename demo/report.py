"""The two turns side by side, and whether the demo has shown what it claims."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.table import Table

from demo.run import Turn
from demo.sizes import in_binary_units
from demo.workload import Answer


def comparison(vanilla: Turn, elastic: Turn) -> Table:
    """A table of what both servers did and held."""
    table = Table(title="The same requests to both servers", title_justify="left")
    table.add_column("")
    table.add_column("vanilla vLLM", justify="right")
    table.add_column("with kvcached", justify="right", style="bold")

    def row(title: str, read: Callable[[Turn], str]) -> None:
        table.add_row(title, read(vanilla), read(elastic))

    count = len(vanilla.answers)
    row("requests", lambda turn: str(len(turn.answers)))
    table.add_row("same answers", "", f"{count - len(differing(vanilla, elastic))} of {count}")
    row("tokens/s", lambda turn: f"{turn.tokens_per_second:.0f}")
    row("time to first token, mean", lambda turn: f"{_first_token_mean(turn.answers):.2f} s")
    row("time to first token, p99", lambda turn: f"{_first_token_p99(turn.answers):.2f} s")
    row("memory, peak", lambda turn: in_binary_units(turn.peak_bytes))
    row("memory, 1 s after load", lambda turn: in_binary_units(turn.after_load_bytes))
    row("time to ready", lambda turn: f"{turn.seconds_to_ready:.0f} s")
    return table


def differing(vanilla: Turn, elastic: Turn) -> list[tuple[Answer, Answer]]:
    """The answers to one question that are not the same text."""
    pairs = zip(vanilla.answers, elastic.answers, strict=True)
    return [(one, other) for one, other in pairs if one.text != other.text]


def describe_difference(vanilla: Answer, elastic: Answer) -> str:
    """The question, and both answers from where they part."""
    texts = zip(vanilla.text, elastic.text, strict=False)
    same = next((at for at, (one, other) in enumerate(texts) if one != other), 0)
    start = max(0, same - 30)
    return (
        f"{vanilla.question}\n"
        f"  vanilla:  ...{vanilla.text[start : same + 40]!r}\n"
        f"  kvcached: ...{elastic.text[start : same + 40]!r}"
    )


def _first_token_mean(answers: list[Answer]) -> float:
    return sum(answer.seconds_to_first_token for answer in answers) / len(answers)


def _first_token_p99(answers: list[Answer]) -> float:
    waits = sorted(answer.seconds_to_first_token for answer in answers)
    return waits[math.ceil(0.99 * len(waits)) - 1]
