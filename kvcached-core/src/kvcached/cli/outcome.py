"""How commands end, and how they speak."""

from __future__ import annotations

import json
import sys
from enum import IntEnum
from typing import Any

from rich.console import Console

#: Of a line that is no terminal's: tables must not be folded in files and pipes.
_WIDE = 240


class Exit(IntEnum):
    """What the exit code says; docs/kvctl.md promises it."""

    OK = 0
    FAILED = 1
    REFUSED = 2
    NOT_FOUND = 3


class CommandError(Exception):
    """Why a command ends, in one line, and with which exit code."""

    def __init__(self, line: str, code: Exit) -> None:
        super().__init__(line)
        self.code = code


def refused(line: str) -> CommandError:
    """Wrong usage, or something that must not be."""
    return CommandError(line, Exit.REFUSED)


def not_found(line: str) -> CommandError:
    """Nothing there, or nobody of that name."""
    return CommandError(line, Exit.NOT_FOUND)


def failed(line: str) -> CommandError:
    """A check that found something wrong."""
    return CommandError(line, Exit.FAILED)


def console() -> Console:
    """The standard output; to be asked for when it is used, since tests replace it."""
    terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not terminal, width=None if terminal else _WIDE)


def say(line: str) -> None:
    """One line to the standard output, as it is."""
    print(line, flush=True)


def warn(line: str) -> None:
    """One line to the standard error."""
    print(f"kvctl: {line}", file=sys.stderr, flush=True)


def say_json(value: Any, *, one_line: bool = False) -> None:
    """A value as JSON, on one line where several follow each other."""
    say(json.dumps(value, indent=None if one_line else 2))
