"""Sizes as the command line takes them, and as it prints them."""

from __future__ import annotations

import math
import re

from kvcached.cli.outcome import refused
from kvcached.sizes import ALLOWED, format_size, parse_size

_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")


def parse_amount(text: str, capacity: int) -> int:
    """The bytes of ``512M``, ``4GiB`` or ``25%`` of a device's capacity; CommandError else."""
    share = _PERCENT.fullmatch(text)
    if share is not None:
        return part(float(share[1]), capacity)
    try:
        return parse_size(text)
    except ValueError:
        raise refused(
            f"not a size: {text!r}; allowed is {ALLOWED}, or 25% of the device's capacity"
        ) from None


def part(percent: float, capacity: int) -> int:
    """So many percent of a capacity; CommandError where they are not above 0 and up to 100."""
    if not math.isfinite(percent) or not 0 < percent <= 100:
        raise refused(f"{percent:g}% is not above 0 and up to 100")
    return int(capacity * percent / 100)


def shown(count: int | None) -> str:
    """A size for people, or a dash where there is none."""
    return "-" if count is None else format_size(count)
