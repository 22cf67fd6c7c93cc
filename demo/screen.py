"""The live view: which set-up's turn it is, how far it is, and what each model holds now.

On a terminal it is redrawn in place; elsewhere (a log, continuous integration) it prints one
line a second.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
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

COLOURS = ("cyan", "magenta")
"""The models', in the order of their first burst."""

LOG_PREFIX = re.compile(
    r"^(\(\w+ pid=\d+\) )?(\w+ +\d\d-\d\d [\d:]+ \[[^]]*\] )?(\[\d{4}-[-\d]+ [\d:]+[^]]*\] )?"
)
"""Which process of an engine wrote a line, when and where: nothing that someone waiting wants to
read."""


@final
class Screen:
    """Shows what the running set-up puts into it. Redrawn by a thread of its own."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._turn = ""
        self._began = 0.0
        self._budget = 1
        self._activity = "starting"
        self._log_lines: dict[str, str] = {}
        self._playing: tuple[Workload, Mapping[str, Sampler]] | None = None
        self._live: Live | None = None
        self._stop = threading.Event()
        self._printer = threading.Thread(target=self._print_lines, daemon=True)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def begin(self, turn: str, budget_bytes: int) -> None:
        """Another set-up's turn."""
        self._turn, self._budget, self._began = turn, budget_bytes, time.monotonic()

    def starting(self, log_lines: Mapping[str, str]) -> None:
        """Servers are starting; these are the last lines of their logs."""
        self._activity = "starting the servers"
        self._log_lines = {
            model: LOG_PREFIX.sub("", line).strip() for model, line in log_lines.items()
        }

    def ready(self) -> None:
        """All servers answer."""
        self._log_lines = {}
        self.say(f"{self._turn}: both ready in {time.monotonic() - self._began:.0f} s")

    def playing(self, workload: Workload, samplers: Mapping[str, Sampler]) -> None:
        """The plan is being played."""
        self._playing = (workload, samplers)

    def stopping(self) -> None:
        """Everything was played; the servers are being stopped."""
        if self._playing is not None:
            self.say(f"{self._turn}: {len(self._playing[0].answers)} requests answered")
        self._playing = None
        self._activity = "stopping the servers"

    def stopped(self) -> None:
        """No server runs any more, whatever happened."""
        self._playing, self._log_lines = None, {}
        self._activity = "servers stopped"

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live = Live(
                console=self.console,
                get_renderable=self._picture,
                refresh_per_second=4,
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
        if self._playing is None:
            logs = " | ".join(f"{model}: {line[:50]}" for model, line in self._log_lines.items())
            return ": ".join(filter(None, [self._turn, self._activity, logs]))
        workload, samplers = self._playing
        held = ", ".join(
            f"{model} {in_binary_units(sampler.now)}" for model, sampler in samplers.items()
        )
        counts = f"{_counts(workload)}; {held} of {in_binary_units(self._budget)}"
        seconds = max(sampler.seconds for sampler in samplers.values())
        return f"{seconds:3.0f} s: {self._turn}: {workload.phase}: {counts}"

    def _picture(self) -> RenderableType:
        if self._playing is None:
            lines: RenderableType = Group(
                Text(self._activity, style="bold"),
                *(
                    Text(f"{model}: {line}", style="dim", no_wrap=True, overflow="ellipsis")
                    for model, line in self._log_lines.items()
                ),
            )
        else:
            workload, samplers = self._playing
            lines = Group(
                Text(workload.phase, style="bold"),
                Text(_counts(workload)),
                Text(),
                self._bars(workload, samplers),
            )
        return Panel(lines, title=self._turn, title_align="left", padding=(1, 2))

    def _bars(self, workload: Workload, samplers: Mapping[str, Sampler]) -> RenderableType:
        rows = Table.grid(padding=(0, 2))
        bar = Text()
        for (model, sampler), colour in zip(samplers.items(), COLOURS, strict=False):
            name = Text(model, style=f"bold {colour}" if model == workload.busy else colour)
            sparks = Text(_sparkline(sampler, self._budget), style=colour)
            rows.add_row(name, sparks, in_binary_units(sampler.now))
            bar.append("█" * round(BAR_CELLS * sampler.now / self._budget), colour)
        bar.append("░" * max(0, BAR_CELLS - len(bar)), "dim")
        rows.add_row("budget", bar, in_binary_units(self._budget))
        return rows


def _counts(workload: Workload) -> str:
    return f"{workload.running} asked, {len(workload.answers)} of {workload.plan.requests} answered"


def _sparkline(sampler: Sampler, scale: int) -> str:
    """The newest seconds, each by its largest reading, as parts of the budget."""
    readings = [sample.held_bytes for sample in sampler.samples[-BAR_CELLS * SPARK_SAMPLES :]]
    starts = range(0, len(readings), SPARK_SAMPLES)
    seconds = [max(readings[start : start + SPARK_SAMPLES]) for start in starts]
    top = len(SPARKS) - 1
    return "".join(SPARKS[min(top, round(top * second / scale))] for second in seconds)
