"""Which SGLang versions are served: those that were run, and those whose contract holds.

``results/`` has a file for each version that the matrix has seen (`nox -s matrix`), with what came
of it. Versions between them have the same extension points. In any version that was not run,
:mod:`kvcached_sglang.contract` looks before an engine is elastic. The standard library alone.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kvcached import compatibility
from kvcached.compatibility import CONTRACT, ON_CPU, ON_GPU, REFUSED, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvcached.compatibility import Result

RESULTS = Path(__file__).with_name("results")

Number = tuple[int, ...]

#: The oldest that takes another scheduler's process: python -m kvcached_sglang.launch_server.
OLDEST: Number = (0, 5, 9)
#: The first with plugins.
PLUGINS: Number = (0, 5, 11)


def number_of(version: str) -> Number | None:
    """The three numbers, or None where the version has none. "0.5.11rc1" and "0.5.12.post1" are the
    releases that they belong to."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


@functools.cache
def results() -> Mapping[Number, Result]:
    """The matrix's results, oldest first."""
    return compatibility.load(RESULTS, number_of)


def served_range() -> str:
    """The versions that are served as people read them."""
    served = [number for number, result in results().items() if not result.refused]
    return f"{text_of(OLDEST)} to {text_of(max(served, default=PLUGINS))}"


def needs_launcher(version: str) -> bool:
    """Whether this version has no plugins, and is served by our launcher."""
    number = number_of(version)
    return number is not None and OLDEST <= number < PLUGINS


def level(version: str, device: str) -> str:
    """How well a version is known on a device ("cpu" or "cuda"): one of compatibility.LEVELS."""
    known = _result(version)
    if known is not None:
        return known.levels.get(device, REFUSED)
    refused = not needs_launcher(version) and reason(version) is not None
    return REFUSED if refused else CONTRACT


def reason(version: str) -> str | None:
    """Why a version is not served by SGLang's plugins, or None; the contract is not asked."""
    number = number_of(version)
    if number is None:
        return (
            f"SGLang {version} is installed, a version without numbers; works with {served_range()}"
        )
    if number < OLDEST:
        return (
            f"SGLang {version} is installed; the oldest version that works is {text_of(OLDEST)}: "
            "older ones cannot be given another KV cache"
        )
    known = _result(version)
    if known is not None and known.refused:
        return f"SGLang {version} is installed, of which is known: {known.reason}"
    if number < PLUGINS:
        return (
            f"SGLang {version} has no plugins: start it with "
            "python -m kvcached_sglang.launch_server"
        )
    return None


def device_reason(version: str, device: str) -> str | None:
    """Why a version that is served is not on this device, or None."""
    known = _result(version)
    if known is not None and known.levels.get(device) == REFUSED:
        return f"SGLang {version} is not covered on this device: {known.reason}"
    return None


def recorded(version: str) -> bool:
    """Whether the matrix has seen this version."""
    return _result(version) is not None


def was_run(version: str, device: str) -> bool:
    """Whether a whole engine of this version was, on this device."""
    found = _result(version)
    return found is not None and found.levels.get(device) in (ON_GPU, ON_CPU)


def broken_reason(version: str, broken: list[str]) -> str:
    """Why a version whose contract does not hold is not served. `broken`: what contract.broken()
    says, at least one line."""
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    return (
        f"SGLang {version} is installed, which differs from what kvcached builds on: {broken[0]}"
        f"{more}; works with {served_range()}"
    )


def caution(version: str, device: str, seams: int) -> str:
    """What to say of a version that is served though nobody ran it on this device; `seams`: how
    many were found in their places."""
    where = {"cuda": "on a GPU", "cpu": "on a CPU"}.get(device, f"on {device}")
    return (
        f"SGLang {version} was not run with this version of kvcached {where}; all {seams} of its "
        "extension points are where they should be"
    )


def _result(version: str) -> Result | None:
    number = number_of(version)
    return None if number is None else results().get(number)
