"""A page that is drawn again and again, until Ctrl-C."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.text import Text

from kvcached.cli.outcome import console

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType


def again_and_again(page: Callable[[], RenderableType], seconds: float, hint: str = "") -> None:
    """Draws a page on the whole terminal, `hint` above it; prints it where there is none.

    Raises KeyboardInterrupt in the end.
    """
    output = console()
    if not output.is_terminal:
        while True:
            output.print(page())
            time.sleep(seconds)
    with Live(console=output, auto_refresh=False, screen=True) as live:
        while True:
            title = f"every {seconds:g} s, Ctrl-C ends; {time.strftime('%H:%M:%S')}"
            title += f"; {hint}" if hint else ""
            live.update(Group(Text(title, "dim"), page()), refresh=True)
            time.sleep(seconds)
