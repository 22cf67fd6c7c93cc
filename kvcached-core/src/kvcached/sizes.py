"""Byte sizes as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {
    "": 1,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
    "t": 1 << 40,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "b": 1,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)

ALLOWED = "a number of bytes, or a number with a unit: 512M, 4GiB, 1.5G (1024), 10GB (1000)"


def parse_size(text: str | int) -> int:
    """The bytes that a text such as ``512M`` or ``4GiB`` names.

    ``K``, ``M``, ``G``, ``T`` count by 1024, with or without ``iB``; ``KB`` to ``TB`` by 1000, as
    in coreutils. Raises ValueError, which says what is allowed.
    """
    match = _SIZE.fullmatch(str(text))
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"not a size: {text!r}; allowed is {ALLOWED}")
    # Exactly: a float loses bytes from 8 PiB on.
    return int(Fraction(match[1]) * _UNITS[match[2].lower()])


def format_size(count: int) -> str:
    """A count of bytes in the largest binary unit that keeps it above 1, as ``2.5 GiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
