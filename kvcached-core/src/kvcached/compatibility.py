"""What came of running an engine's versions: the records that engine packages ship.

A package keeps a file a version in its ``results/``, written by ``nox -s matrix`` and read by the
package itself, by ``kvctl doctor`` and for docs/compatibility.md. The standard library alone:
plugins ask before their engine has loaded anything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

ON_GPU = "verified on GPU"
ON_CPU = "verified on CPU"
CONTRACT = "contract only"
REFUSED = "refused"
#: From the best known to the least; what a result may say of a device.
LEVELS = (ON_GPU, ON_CPU, CONTRACT, REFUSED)


@dataclass(frozen=True)
class Result:
    """What came of one version of an engine in the matrix."""

    version: str
    levels: Mapping[str, str]
    """By device, "cpu" and "cuda"."""
    reason: str | None = None
    """Why it is refused, or what is known to fail."""
    seconds: float | None = None
    date: str | None = None
    ran: str | None = None
    """What was run on a CPU, as people read it."""
    gpu: str | None = None
    """What was run on a GPU, and when."""

    @property
    def refused(self) -> bool:
        """Whether it is refused on every device."""
        return set(self.levels.values()) == {REFUSED}

    @property
    def was_run(self) -> bool:
        """Whether an engine was, on some device."""
        return not {ON_GPU, ON_CPU}.isdisjoint(self.levels.values())

    def record(self) -> dict[str, Any]:
        """The result as it is written."""
        return {name: value for name, value in vars(self).items() if value is not None}


def best(levels: Iterable[str]) -> str:
    """The best known of several levels."""
    return min(levels, key=LEVELS.index)


def read(path: Path) -> Result:
    """The result in a file."""
    return Result(**json.loads(path.read_text()))


def load(
    folder: Path, number_of: Callable[[str], tuple[int, ...] | None]
) -> dict[tuple[int, ...], Result]:
    """The results in a folder by the numbers of their versions, oldest first."""
    found = {}
    for result in map(read, folder.glob("*.json")):
        number = number_of(result.version)
        assert number is not None, result
        found[number] = result
    return dict(sorted(found.items()))


def text_of(number: tuple[int, ...]) -> str:
    """A version's numbers as people write them."""
    return ".".join(map(str, number))
