"""What a check of `kvctl doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    level: Level
    """"fail": elastic engines will not run, or not rightly. "warn": somebody should know."""
    subject: str
    text: str
    advice: str = ""
    """What to do, as a command where there is one."""


def ok(subject: str, text: str) -> Finding:
    """As it should be."""
    return Finding("ok", subject, text)


def warn(subject: str, text: str, advice: str = "") -> Finding:
    """Works, and somebody should know."""
    return Finding("warn", subject, text, advice)


def fail(subject: str, text: str, advice: str) -> Finding:
    """Does not work."""
    return Finding("fail", subject, text, advice)
