"""What kvtop asks and explains in the middle of the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

if TYPE_CHECKING:
    from textual.app import ComposeResult

_HELP = """\
[b]Keys[/b]
  up, down  select an engine
  l         set a limit for each of its ranks
  t         take back its slack and cached prefixes
  ?         this help
  q         quit

[b]Columns[/b]
  HELD      taken from the device
  LIVE      under running requests
  CACHED    under finished prefixes alone
  SLACK     committed ahead of need
  FLOOR     guaranteed while the engine lives
  LIMIT     most it may hold
  DEMAND    its requests' need, the last second's peak
  MiB/s     how fast HELD grows

[b]States[/b]
  waiting     wants memory that it has not got yet
  reclaiming  is asked to give back
  stalled     silent for more than 5 s, keeps its memory
  dead        has ended; kvctl delete removes what it left
"""


_CSS = """
NAME { align: center middle; }
NAME > Vertical, NAME > VerticalScroll {
    width: 66; height: auto; max-height: 90%; padding: 0 2;
    border: round $primary; background: $surface;
}
"""


class AskLimit(ModalScreen[str | None]):
    """Asks for a size; answers None where the user thought better of it."""

    DEFAULT_CSS = _CSS.replace("NAME", "AskLimit")
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "leave")]

    def __init__(self, name: str) -> None:
        super().__init__()
        self._whose = name

    def compose(self) -> ComposeResult:
        """The question and a line for the answer."""
        with Vertical():
            yield Static(f"Limit of each rank of {self._whose}:", markup=False)
            yield Input(placeholder="512M, 4GiB, 25% or none; Escape leaves it as it is")

    def on_input_submitted(self, answer: Input.Submitted) -> None:
        """Takes the answer."""
        self.dismiss(answer.value.strip() or None)

    def action_leave(self) -> None:
        """No answer."""
        self.dismiss(None)


class Help(ModalScreen[None]):
    """What keys, columns and states mean."""

    DEFAULT_CSS = _CSS.replace("NAME", "Help")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter", "leave", "close")
    ]

    def compose(self) -> ComposeResult:
        """The text."""
        with VerticalScroll():  # for terminals of few lines
            yield Static(_HELP)

    def action_leave(self) -> None:
        """Back."""
        self.dismiss(None)
