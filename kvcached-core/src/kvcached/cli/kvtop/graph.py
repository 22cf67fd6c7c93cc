"""The history graph: what everybody held, stacked, over time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from rich.text import Text

from kvcached.cli.amounts import shown
from kvcached.cli.kvtop.history import SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvcached.cli.kvtop.history import History

_NOTHING = ""
_AXIS = 11  # "1023.9 GiB "


def stacked(
    history: History, colour_of: Mapping[str, str], top: int, size: tuple[int, int]
) -> Text:
    """A column a moment, everybody's bytes above one another, on a scale up to `top` bytes.

    `size` is columns and lines. Half blocks make two steps of a line.
    """
    width, lines = size
    points, steps = max(width - _AXIS, 1), 2 * max(lines - 1, 1)
    names = history.names
    held = {name: history.held(name, points) for name in names}
    columns = [
        _column([(held[name][at], colour_of[name]) for name in names], max(top, 1), steps)
        for at in range(points)
    ]
    graph = Text(no_wrap=True)
    for line in range(steps // 2):
        upper, lower = steps - 1 - 2 * line, steps - 2 - 2 * line
        label = shown(top) if line == 0 else shown(top // 2) if line == steps // 4 else ""
        graph.append(f"{label:>{_AXIS - 1}} ", "dim")
        cells = (_cell(column[upper], column[lower]) for column in columns)
        for cell, same in itertools.groupby(cells):
            character, style = cell
            graph.append(character * len(list(same)), style)
        graph.append("\n")
    past = f"{SECONDS / 60:.0f} min ago"
    graph.append(" " * _AXIS + past + " " * max(points - len(past) - 3, 0) + "now", "dim")
    return graph


def _column(parts: Sequence[tuple[int, str]], top: int, steps: int) -> list[str]:
    """The colours of a column's steps, lowest first."""
    column = [_NOTHING] * steps
    below = 0
    for size, colour in parts:
        begin, end = (min(round(at * steps / top), steps) for at in (below, below + size))
        column[begin:end] = [colour] * (end - begin)
        below += size
    return column


def _cell(upper: str, lower: str) -> tuple[str, str]:
    """A character and its style."""
    if upper == lower:
        return ("█", upper) if upper else (" ", "default")
    if not upper:
        return "▄", lower
    if not lower:
        return "▀", upper
    return "▀", f"{upper} on {lower}"
