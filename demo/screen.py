"""The live view: which server's turn it is, how far it is, and what its KV cache holds now.

On a terminal it is redrawn in place; elsewhere (a log, continuous integration) it prints one
line a second.
"""

from __future__ import annotations

import re
import threading
from types import TracebackType
from typing import final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from demo.memory import Sampler
from demo.sizes import in_binary_units
from demo.workload import Workload

BAR_CELLS = 44
SPARKS = " ▁▂▃▄▅▆▇█"
SPARK_SAMPLES = 10
"""Samples a spark stands for: one second."""

LOG_PREFIX = re.compile(r"^(\(\w+ pid=\d+\) )?(\w+ +\d\d-\d\d [\d:]+ \[[^]]*\] )?")
"""Which process of vLLM wrote a line, when and where: not what someone waiting wants to read."""


@final
class Screen:
    """Shows what the running turn puts into it. Redrawn by a thread of its own."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.turn = ""
        self.vanilla_bytes = 0
        self._activity = ""
        self._log_line = ""
        self._workload: Workload | None = None
        self._sampler: Sampler | None = None
        self._live: Live | None = None
        self._stop = threading.Event()
        self._printer = threading.Thread(target=self._print_lines, daemon=True)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def starting(self, log_line: str) -> None:
        """The server is starting; this is the last line of its log."""
        self._activity = "starting the server"
        self._log_line = LOG_PREFIX.sub("", log_line).strip()

    def playing(self, workload: Workload, sampler: Sampler) -> None:
        """The plan is being played."""
        self._workload, self._sampler = workload, sampler

    def stopping(self) -> None:
        """Nothing is being played any more; the server is being stopped."""
        self._workload, self._sampler = None, None
        self._activity, self._log_line = "stopping the server", ""

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live = Live(
                console=self.console,
                get_renderable=self._picture,
                refresh_per_second=5,
                transient=True,
            )
            self._live.start()
        else:
            self._printer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._stop.set()
            self._printer.join()

    def _print_lines(self) -> None:
        printed = ""
        while not self._stop.wait(1.0):
            # While a server starts, its log stands still for seconds on end.
            if (line := self._line()) != printed:
                self.say(line)
                printed = line

    def _line(self) -> str:
        workload, sampler = self._workload, self._sampler
        if workload is None or sampler is None:
            return ": ".join(filter(None, [self.turn, self._activity, self._log_line[:90]]))
        holds = f"memory {in_binary_units(sampler.now)}"
        if self.vanilla_bytes:
            holds += f" (vanilla: {in_binary_units(self.vanilla_bytes)})"
        counts = self._counts(workload)
        return f"{sampler.seconds:3.0f} s: {self.turn}: {workload.phase}: {counts}, {holds}"

    def _picture(self) -> RenderableType:
        workload, sampler = self._workload, self._sampler
        if workload is None or sampler is None:
            lines: RenderableType = Group(
                Text(self._activity, style="bold"),
                Text(self._log_line, style="dim", no_wrap=True, overflow="ellipsis"),
            )
        else:
            lines = Group(
                Text(workload.phase, style="bold"),
                Text(self._counts(workload)),
                Text(),
                self._bars(sampler),
            )
        return Panel(lines, title=self.turn, title_align="left", padding=(1, 2))

    def _counts(self, workload: Workload) -> str:
        return f"{workload.running} running, {len(workload.answers)} of {workload.total} done"

    def _bars(self, sampler: Sampler) -> RenderableType:
        scale = max(self.vanilla_bytes, sampler.peak, 1)
        rows = Table.grid(padding=(0, 2))
        now, style = sampler.now, "cyan" if self.vanilla_bytes else "yellow"
        rows.add_row("memory now", _bar(now / scale, style), in_binary_units(now))
        if self.vanilla_bytes:
            held = self.vanilla_bytes
            rows.add_row("vanilla held", _bar(held / scale, "yellow"), in_binary_units(held))
        rows.add_row("each second", Text(_sparkline(sampler), style=style), "")
        return rows


def _bar(fraction: float, style: str) -> Text:
    full = round(BAR_CELLS * fraction)
    return Text.assemble(("█" * full, style), ("░" * (BAR_CELLS - full), "dim"))


def _sparkline(sampler: Sampler) -> str:
    """The newest seconds, each by its largest reading, scaled to the largest shown."""
    readings = [sample.held_bytes for sample in sampler.samples[-BAR_CELLS * SPARK_SAMPLES :]]
    starts = range(0, len(readings), SPARK_SAMPLES)
    seconds = [max(readings[start : start + SPARK_SAMPLES]) for start in starts]
    scale = max(seconds, default=0) or 1
    return "".join(SPARKS[round((len(SPARKS) - 1) * second / scale)] for second in seconds)
