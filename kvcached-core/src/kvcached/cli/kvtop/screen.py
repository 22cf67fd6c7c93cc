"""The screen itself, in textual."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import DataTable, Footer, Static

from kvcached.cli import ordering
from kvcached.cli.kvtop import frame
from kvcached.cli.kvtop.dialogs import AskLimit, Help
from kvcached.cli.kvtop.graph import stacked
from kvcached.cli.outcome import CommandError
from kvcached.cli.place import Reading, reading

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvcached.cli.carrying_out import Report
    from kvcached.cli.kvtop.history import History

_MARGINS = 2


class KvTop(App[None]):
    """Devices, engines and what they held, looked at again and again."""

    TITLE = "kvtop"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { background: $background; }
    #devices { height: auto; max-height: 40%; padding: 1 1 0 1; }
    #engines { height: auto; max-height: 50%; margin: 1 0; background: $background; }
    /* Dark enough that every engine's colour is seen on it. */
    #engines > .datatable--cursor, #engines:focus > .datatable--cursor { background: #39414a; }
    #history { height: 1fr; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("l", "limit", "limit"),
        Binding("t", "trim", "trim"),
        Binding("question_mark", "help", "help"),
    ]

    def __init__(self, directory: Path, history: History, seconds: float) -> None:
        super().__init__()
        self._directory = directory
        self._history = history
        self._seconds = seconds
        self._found = Reading(directory, [], [])

    def compose(self) -> ComposeResult:
        """Devices above, engines below, then the graph."""
        with VerticalScroll(id="devices", can_focus=False):
            yield Static(id="bars")
        # The colour of an engine is its name's in the bars and in the graph.
        yield DataTable[Text](
            id="engines", cursor_type="row", cursor_foreground_priority="renderable"
        )
        yield Static(id="history")
        yield Footer()

    def on_mount(self) -> None:
        """Starts looking."""
        table = self._table()
        for column in frame.COLUMNS:
            table.add_column(column, key=column)
        table.focus()
        self.look()
        self.set_interval(self._seconds, self.look)

    def on_resize(self) -> None:
        """Draws anew in the new width."""
        self._draw()

    def look(self) -> None:
        """Reads the ledgers and shows what is in them."""
        self._found = reading(self._directory)
        self._history.note(self._found)
        self._draw()

    def _table(self) -> DataTable[Text]:
        return self.query_one("#engines", DataTable)

    def _draw(self) -> None:
        colour_of = frame.colours(self._history)
        width = max(self.size.width - 2 * _MARGINS, 10)
        self.query_one("#bars", Static).update(self._bars(colour_of, width))
        self._fill_table(colour_of)
        history = self.query_one("#history", Static)
        lines = history.size.height
        if lines > 2:
            top = sum(account.capacity for account in self._found.devices)
            history.update(stacked(self._history, colour_of, top, (width, lines)))

    def _bars(self, colour_of: dict[str, str], width: int) -> Text:
        text = Text()
        for account in self._found.devices:
            text.append_text(frame.device_lines(account, colour_of, width)).append("\n")
        if not self._found.instances:
            text.append(frame.nobody(self._found))
        else:
            text.append_text(frame.legend())
        for problem in self._found.problems:
            text.append(f"\n{problem.path}: {problem.reason}", "red")
        return text

    def _fill_table(self, colour_of: dict[str, str]) -> None:
        """Changes cells in place, so that the selection stays."""
        table = self._table()
        members = {member.name: member for member in self._found.instances}
        shown = {str(key.value) for key in table.rows}
        for name in shown - members.keys():
            table.remove_row(name)
        for name, member in members.items():
            row = frame.cells(member, self._history, colour_of[name])
            if name not in shown:
                table.add_row(*row, key=name)
                continue
            for column, cell in zip(frame.COLUMNS, row, strict=True):
                table.update_cell(name, column, cell, update_width=True)

    def _selected(self) -> str | None:
        table = self._table()
        if not table.row_count:
            self.notify("no engine is selected", severity="warning")
            return None
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)

    def action_limit(self) -> None:
        """Asks for a limit of the selected engine and orders it."""
        name = self._selected()
        if name is None:
            return

        def order(size: str | None) -> None:
            if size:
                self._order(lambda found: ordering.limit(found, name, size))

        self.push_screen(AskLimit(name), order)

    def action_trim(self) -> None:
        """Orders the selected engine to give back slack and cached prefixes."""
        name = self._selected()
        if name is not None:
            self._order(lambda found: ordering.trim(found, name))

    def action_help(self) -> None:
        """Says what keys and columns mean."""
        self.push_screen(Help())

    @work(thread=True)
    def _order(self, give: Callable[[Reading], Report | None]) -> None:
        """In a thread: an engine may take its time to answer."""
        try:
            report = give(reading(self._directory))
        except CommandError as error:
            self.call_from_thread(self.notify, str(error), severity="error", timeout=8)
            return
        lines = report.lines() if report else [("nothing cached and no slack to give back", True)]
        for line, done in lines:
            severity = "information" if done else "warning"
            self.call_from_thread(self.notify, line, severity=severity, timeout=8)
