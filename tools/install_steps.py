"""Installation steps that a person can watch: one line each, with the time it takes.

Whatever a step prints goes to a log file. A step that fails names itself, the log and the
log's last lines, so that nobody has to scroll through an installer's output.

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REDRAW_SECONDS = 0.5
LINES_SHOWN_ON_FAILURE = 20


class StepFailed(RuntimeError):
    """A step ended with an error; the message says which, and where its log is."""


class Steps:
    """Runs steps one after another and writes everything they print into one log."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._live = sys.stdout.isatty()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def command(self, title: str, argv: Sequence[str | Path]) -> None:
        """Run a command as a step. Raises StepFailed when it does not exit with 0."""
        words = [str(word) for word in argv]
        started = time.monotonic()
        with self._log.open("a") as log:
            log.write(f"\n=== {title}\n$ {' '.join(words)}\n")
            log.flush()
            self._begin(title)
            process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
            try:
                while (status := self._wait(process)) is None:
                    self._progress(title, started)
            except BaseException:
                # Ctrl-C reaches the child as well; do not leave before it has.
                process.terminate()
                process.wait()
                raise
        if status != 0:
            self._end(title, started, "FAILED")
            raise StepFailed(self._failure(title, status))
        self._end(title, started, "done")

    def action(self, title: str, act: Callable[[], None]) -> None:
        """Run a short Python function as a step."""
        started = time.monotonic()
        self._begin(title)
        act()
        self._end(title, started, "done")

    @staticmethod
    def _wait(process: subprocess.Popen[bytes]) -> int | None:
        try:
            return process.wait(REDRAW_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def _begin(self, title: str) -> None:
        if not self._live:
            print(f"  {title} ...", flush=True)

    def _progress(self, title: str, started: float) -> None:
        if self._live:
            print(f"\r  {title} ... {time.monotonic() - started:.0f} s", end="", flush=True)

    def _end(self, title: str, started: float, outcome: str) -> None:
        seconds = f"{outcome} in {time.monotonic() - started:.0f} s"
        print(f"\r\033[K  {title} ... {seconds}" if self._live else f"    {seconds}", flush=True)

    def _failure(self, title: str, status: int) -> str:
        tail = self._log.read_text(errors="replace").splitlines()[-LINES_SHOWN_ON_FAILURE:]
        free = shutil.disk_usage(self._log.parent).free / 1e9
        said = f"step failed (exit status {status}, {free:.1f} GB free on this disk): {title}"
        return "\n".join([said, f"log: {self._log}", "", *tail])
