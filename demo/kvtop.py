"""What `kvctl kvtop` shows at a moment, asked as a user would ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

TIMEOUT_SECONDS = 20.0
COLUMNS = 112


class KvtopFailed(RuntimeError):
    """kvtop ended with an error; the message is its last line."""


def one_frame(ledgers: Path) -> Text:
    """One frame, in colour. Raises KvtopFailed."""
    command = [sys.executable, "-m", "kvcached.cli", "--dir", str(ledgers), "kvtop", "--once"]
    # Where it writes to a pipe, it is asked for colours; and NO_COLOR would win.
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    environment |= {"FORCE_COLOR": "1", "COLORTERM": "truecolor"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise KvtopFailed(f"kvctl kvtop gave no frame in {TIMEOUT_SECONDS:.0f} s") from None
    if done.returncode != 0:
        why = done.stderr.strip().splitlines() or ["no reason given"]
        raise KvtopFailed(f"kvctl kvtop ended with {done.returncode}: {why[-1]}")
    frame = Text.from_ansi(done.stdout.rstrip())
    frame.no_wrap = True
    return frame


def save(frame: Text, file: Path) -> None:
    """Write the frame to an SVG file."""
    widest = max((len(line) for line in frame.plain.splitlines()), default=COLUMNS)
    with Path(os.devnull).open("w") as nowhere:
        paper = Console(record=True, width=max(COLUMNS, widest), file=nowhere)
        paper.print(frame)
        file.write_text(paper.export_svg(title="kvctl kvtop --once"))
