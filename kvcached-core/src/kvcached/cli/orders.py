"""``kvctl limit``, ``limit-percent``, ``floor``, ``weight`` and ``trim``."""

from __future__ import annotations

from typing import Annotated

import typer

from kvcached.cli import amounts, ordering
from kvcached.cli.outcome import say, say_json
from kvcached.cli.place import AsJson, Name, read

# So that a negative number reaches us, and is refused in our words.
_NEGATIVE = {"ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(context_settings=_NEGATIVE)(limit)
    app.command("limit-percent", context_settings=_NEGATIVE)(limit_percent)
    app.command(context_settings=_NEGATIVE)(floor)
    app.command(context_settings=_NEGATIVE)(weight)
    app.command(context_settings=_NEGATIVE)(trim)


def limit(
    context: typer.Context,
    name: Name,
    size: Annotated[str, typer.Argument(help="Such as 512M, 4GiB or 25%; or none.")],
    as_json: AsJson = False,
) -> None:
    """Bound what a group holds together on each device, or each rank of one instance."""
    ordering.limit(read(context), name, size).say(as_json=as_json)


def limit_percent(
    context: typer.Context,
    name: Name,
    percent: Annotated[float, typer.Argument(help="Of the device's capacity, such as 25.")],
    as_json: AsJson = False,
) -> None:
    """The same, as a share of each device's capacity."""
    amounts.part(percent, 0)  # refused in its own words
    ordering.limit(read(context), name, f"{percent:f}%").say(as_json=as_json)


def floor(
    context: typer.Context,
    name: Name,
    size: Annotated[str, typer.Argument(help="Such as 512M, 4GiB or 25%; or default.")],
    as_json: AsJson = False,
) -> None:
    """Guarantee memory to each rank of an instance, or of every instance of a group."""
    ordering.floor(read(context), name, size).say(as_json=as_json)


def weight(
    context: typer.Context,
    name: Name,
    number: Annotated[float, typer.Argument(help="1 is usual; 2 gets twice as much.")],
    as_json: AsJson = False,
) -> None:
    """Set the share that engines get where several want more than there is."""
    ordering.weight(read(context), name, number).say(as_json=as_json)


def trim(
    context: typer.Context,
    name: Name,
    size: Annotated[
        str, typer.Argument(help="From each rank; left out: all that is cached or slack.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Make engines give back slack and cached prefixes; running requests keep theirs."""
    report = ordering.trim(read(context), name, size)
    if report is not None:
        report.say(as_json=as_json)
        return
    line = f"{name}: no cached prefixes and no slack to give back"
    if as_json:
        say_json({"orders": [], "warning": line})
    else:
        say(line)
