"""kvctl: see and steer who holds how much of a device."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs kvctl on `arguments` (those of the process where left out); returns its exit code."""
    if not all(importlib.util.find_spec(name) for name in ("typer", "rich")):
        print("kvctl: typer and rich are missing: pip install typer rich", file=sys.stderr)
        return 2
    from kvcached.cli.program import run

    return run(arguments)
