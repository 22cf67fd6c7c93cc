"""Which vLLM versions are served: those that were run, and those whose contract holds.

``results/`` has a file for each version that the matrix has seen (`nox -s matrix`), with what came
of it. A version that was run is served. Any other one is read first (:mod:`kvcached_vllm.contract`)
and served with a line if its contract holds. The standard library alone.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kvcached import compatibility
from kvcached.compatibility import CONTRACT, ON_CPU, ON_GPU, REFUSED, text_of
from kvcached_vllm import contract, sources

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvcached.compatibility import Result

RESULTS = Path(__file__).with_name("results")

Number = tuple[int, ...]

#: Before, the KV cache manager had no coordinator that is asked what a request needs, and no V1
#: engine ran on a CPU.
OLDEST: Number = (0, 9)


def number_of(version: str) -> Number | None:
    """Major and minor number, or None where the version has none."""
    found = re.match(r"v?(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else None


@functools.cache
def results() -> Mapping[Number, Result]:
    """The matrix's results, oldest first."""
    return compatibility.load(RESULTS, number_of)


def served_range() -> str:
    """The versions that are served as people read them."""
    served = [number for number, result in results().items() if not result.refused]
    return f"{text_of(OLDEST)} to {text_of(max(served, default=OLDEST))}"


def level(version: str, device: str) -> str:
    """How well a version is known on a device ("cpu" or "cuda"): one of compatibility.LEVELS."""
    known = _result(version)
    if known is not None:
        return known.levels.get(device, REFUSED)
    return REFUSED if reason(version) else CONTRACT


def reason(version: str) -> str | None:
    """Why a version is not served on any device, or None. Reads vLLM's sources where the version
    was not run (half a second)."""
    number = number_of(version)
    installed = f"vLLM {version} is installed"
    if number is not None and number < OLDEST:
        return f"{installed}; the oldest version that works is {text_of(OLDEST)}"
    known = _result(version)
    if known is not None and known.refused:
        return f"{installed}, of which is known: {known.reason}; works with {served_range()}"
    if known is not None and known.was_run:
        return None
    broken = _broken(None)
    if not broken:
        return None
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    return (
        f"{installed}, which differs from what kvcached builds on: {broken[0]}{more}; works with "
        f"{served_range()}"
    )


def device_reason(version: str, device: str) -> str | None:
    """Why a version that is served is not on this device, or None."""
    known = _result(version)
    if known is not None and known.levels.get(device) == REFUSED:
        return f"vLLM {version} is not covered on this device: {known.reason}"
    if level(version, device) in (ON_GPU, ON_CPU):
        return None
    broken = _broken(device)
    return f"vLLM {version} differs from what kvcached builds on: {broken[0]}" if broken else None


def caution(version: str, device: str) -> str | None:
    """What to say of a version that is served though nobody ran it on this device, or None."""
    if level(version, device) in (ON_GPU, ON_CPU):
        return None
    seams = len([seam for seam in contract.SEAMS if seam.device in (None, device)])
    where = {"cuda": "on a GPU", "cpu": "on a CPU"}.get(device, f"on {device}")
    return (
        f"vLLM {version} was not run with this version of kvcached {where}; all {seams} of its "
        "extension points are where they should be"
    )


def _result(version: str) -> Result | None:
    number = number_of(version)
    return None if number is None else results().get(number)


@functools.cache
def _broken(device: str | None) -> list[str]:
    return contract.broken(sources.installed(), device)
