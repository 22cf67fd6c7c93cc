"""``kvctl kvtop``: devices and engines on the whole screen.

Its keys need textual. Without it the same page is drawn again and again.
"""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from kvcached.cli.outcome import console
from kvcached.cli.place import directory_of, reading
from kvcached.cli.repeating import again_and_again

if TYPE_CHECKING:
    from rich.console import RenderableType


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
    from kvcached.cli.kvtop.history import History

    history = History()
    with ExitStack() as stack:
        if demo:
            from kvcached.cli.kvtop.demo import made_up_engines

            directory = stack.enter_context(made_up_engines())
        else:
            directory = directory_of(context)
        if not once and importlib.util.find_spec("textual"):
            from kvcached.cli.kvtop.screen import KvTop

            KvTop(directory, history, seconds).run()
            return
        from kvcached.cli.kvtop.frame import frame

        def drawn() -> RenderableType:
            found = reading(directory)
            history.note(found)
            return frame(found, history)

        if once:
            console().print(drawn())
            return
        with suppress(KeyboardInterrupt):
            again_and_again(drawn, seconds, "for keys: pip install 'kvcached-core[kvtop]'")
