"""``kvctl kvtop``: devices and engines on the whole screen."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from typing import Annotated

import typer

from kvcached.cli.outcome import console, refused
from kvcached.cli.place import directory_of, reading


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(kvtop)


def kvtop(
    context: typer.Context,
    seconds: Annotated[
        float, typer.Option("-n", "--interval", min=0.1, help="Seconds between looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Show made-up engines in a ledger of their own.")
    ] = False,
) -> None:
    """Watch devices and engines on the whole screen, and set limits there (? tells the keys)."""
    if not once and importlib.util.find_spec("textual") is None:
        raise refused(
            "textual is missing: pip install 'kvcached-core[kvtop]', or use kvctl kvtop --once"
        )
    from kvcached.cli.kvtop.history import History

    history = History()
    with ExitStack() as stack:
        if demo:
            from kvcached.cli.kvtop.demo import made_up_engines

            directory = stack.enter_context(made_up_engines())
        else:
            directory = directory_of(context)
        if once:
            from kvcached.cli.kvtop.frame import frame

            found = reading(directory)
            history.note(found)
            console().print(frame(found, history))
            return
        from kvcached.cli.kvtop.screen import KvTop

        KvTop(directory, history, seconds).run()
