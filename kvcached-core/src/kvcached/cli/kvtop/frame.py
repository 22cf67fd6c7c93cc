"""What kvtop shows, as text: the devices' bars and a row an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvcached.cli.amounts import shown
from kvcached.cli.listing import STATE_STYLES, device_line

if TYPE_CHECKING:
    from kvcached.cli.kvtop.history import History
    from kvcached.cli.place import Reading
    from kvcached.inventory import Device, Instance

_COLOURS = ("#4fa3e0", "#f0a04b", "#7bc86c", "#d977b5", "#9b8cf0", "#4fc8c0", "#e0c84f", "#e0695f")
_OTHERS = "grey50"
_FREE = "grey23"

#: Of the table; what is a number stands right.
COLUMNS = (
    "ENGINE",
    "HELD",
    "LIVE",
    "CACHED",
    "SLACK",
    "FLOOR",
    "LIMIT",
    "DEMAND",
    "MiB/s",
    "STATE",
)
_BAR_WIDTH = 60


def colours(history: History) -> dict[str, str]:
    """A colour for everybody, the same as long as they are remembered."""
    return {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(history.names)}


def device_bar(account: Device, colour_of: dict[str, str], width: int) -> Text:
    """The device's memory: each engine's in its colour, strangers', and what is free."""
    # What the device calls taken, and no engine backs: weights, and other programs.
    backed = sum(lease.backed for lease in account.leases)
    others = max(account.total - account.free - backed, 0) if account.total else 0
    total = account.total
    if account.capacity < (account.free + backed) / 2:
        # A setting bounds the engines far below what is there, and the bar is theirs alone.
        others, total = 0, account.capacity
    total = max(total, account.used, 1)
    parts: list[tuple[int, str]] = []
    for lease in sorted(account.leases, key=lambda lease: (lease.group, lease.instance)):
        colour = colour_of.get(f"{lease.group}/{lease.instance}", "white")
        parts.append((lease.held, colour))
    parts.append((others, _OTHERS))
    bar = Text(no_wrap=True)
    before = 0
    for size, colour in parts:
        # Ends are rounded, not lengths: the bar is as long as the sum.
        begin, end = (min(round(at * width / total), width) for at in (before, before + size))
        bar.append("█" * (end - begin), colour)
        before += size
    bar.append("░" * (width - len(bar.plain)), _FREE)
    return bar


def device_lines(account: Device, colour_of: dict[str, str], width: int) -> Text:
    """A device's line and its bar with a legend."""
    line = Text(device_line(account), no_wrap=True)
    line.append("\n")
    line.append_text(device_bar(account, colour_of, width))
    return line


def legend() -> Text:
    """What the bar's greys mean."""
    return Text.assemble(
        ("█", _OTHERS), (" weights and other programs  ", "dim"), ("░", _FREE), (" free", "dim")
    )


def cells(member: Instance, history: History, colour: str) -> list[Text]:
    """An engine's row, by COLUMNS."""
    rate = history.rate(member.name)
    sizes = (member.held, member.live, member.cached, member.slack, member.floor, member.limit)
    numbers = [*map(shown, sizes), shown(member.demand)]
    numbers.append("-" if rate is None else f"{rate / (1 << 20):+.0f}" if round(rate) else "0")
    return [
        Text.assemble(("■ ", colour), member.name),
        *(Text(number, justify="right") for number in numbers),
        Text(member.state, STATE_STYLES[member.state]),
    ]


def frame(found: Reading, history: History) -> RenderableType:
    """One frame without a screen."""
    colour_of = colours(history)
    parts: list[RenderableType] = [
        device_lines(account, colour_of, _BAR_WIDTH) for account in found.devices
    ]
    if found.devices:
        parts.append(legend())
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        side = "left" if column in ("ENGINE", "STATE") else "right"
        table.add_column(column, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for member in found.instances:
        table.add_row(*cells(member, history, colour_of.get(member.name, "white")))
    parts.append(table if found.instances else Text(nobody(found)))
    parts += [Text(f"{problem.path}: {problem.reason}", "red") for problem in found.problems]
    return Group(*parts)


def nobody(found: Reading) -> str:
    """Why there is nothing to see."""
    return f"no engine holds a lease in {found.directory}"
