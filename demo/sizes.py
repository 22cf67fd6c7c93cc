"""Sizes as people read them."""

from __future__ import annotations

MIB = 1024**2
GIB = 1024**3


def in_binary_units(size: int) -> str:
    """`2.00 GiB`, `283 MiB`: enough digits to compare, no more."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
