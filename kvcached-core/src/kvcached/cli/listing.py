"""``kvctl list`` and ``kvctl watch``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvcached.cli import as_json
from kvcached.cli.amounts import shown
from kvcached.cli.outcome import console, say_json
from kvcached.cli.place import AnyName, AsJson, Reading, directory_of, read, reading
from kvcached.cli.repeating import again_and_again

if TYPE_CHECKING:
    from kvcached.inventory import Device, Instance

#: How states are coloured, here and in kvtop.
STATE_STYLES = {
    "ok": "green",
    "waiting": "yellow",
    "reclaiming": "cyan",
    "stalled": "magenta",
    "dead": "red",
}


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("list")(list_)
    app.command()(watch)


def list_(context: typer.Context, as_json_: AsJson = False) -> None:
    """Show devices and the engines that share them."""
    found = read(context)
    if as_json_:
        say_json(as_json.reading(found))
    else:
        console().print(page(found, found.instances))


def watch(
    context: typer.Context,
    name: AnyName = "",
    seconds: Annotated[
        float, typer.Option("-n", "--interval", min=0.1, help="Seconds between looks.")
    ] = 2.0,
    as_json_: AsJson = False,
) -> None:
    """Show the same again and again, until Ctrl-C; as JSON, a line a look."""
    directory = directory_of(context)
    if name:
        read(context).find(name)  # a name that is wrong from the start is an error

    def look() -> Reading:
        found = reading(directory)
        return found.narrowed(name) if name else found

    def drawn() -> RenderableType:
        found = look()
        return page(found, found.instances)

    try:
        if as_json_:
            while True:
                found = look()
                say_json({"time": time.time(), **as_json.reading(found)}, one_line=True)
                time.sleep(seconds)
        again_and_again(drawn, seconds)
    except KeyboardInterrupt:
        return


def page(found: Reading, members: list[Instance]) -> RenderableType:
    """Devices, engines and what could not be read, for people."""
    parts: list[RenderableType] = [Text(device_line(account)) for account in found.devices]
    if members:
        parts.append(table(members))
    elif not found.problems:
        parts.append(Text(f"no engine holds a lease in {found.directory}"))
    parts += [Text(f"{problem.path}: {problem.reason}", "red") for problem in found.problems]
    return Group(*parts)


def device_line(account: Device) -> str:
    """A device in one line."""
    line = f"{account.id}: {shown(account.used)} of {shown(account.capacity)} held by engines"
    if account.total:
        line += f", {shown(account.free)} of {shown(account.total)} free on the device"
    if account.policy:
        line += f", policy {account.policy}"
    return line + (", contended" if account.contended else "")


def table(members: list[Instance]) -> Table:
    """A row an engine."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NAME", "ENGINE", "DEVICE", "RANKS"):
        made.add_column(column, no_wrap=column == "NAME")
    for column in ("HELD", "LIVE", "CACHED", "SLACK", "FLOOR", "LIMIT", "GROUP LIMIT", "DEMAND"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_column("STATE")
    for member in members:
        made.add_row(
            member.name,
            member.engine,
            ",".join(member.devices),
            str(member.ranks),
            *map(shown, (member.held, member.live, member.cached, member.slack, member.floor)),
            *map(shown, (member.limit, member.group_limit, member.demand)),
            Text(member.state, STATE_STYLES[member.state]),
        )
    return made
