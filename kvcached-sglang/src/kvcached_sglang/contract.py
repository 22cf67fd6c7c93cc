"""What SGLang must have for its cache to be elastic, looked for in the code that is loaded.

Each :class:`Seam` is one extension point, or one thing that SGLang promises nowhere and that is
built on all the same; how it is looked for is in :mod:`kvcached_sglang.seam_checks`. A scheduler's
process has loaded all of it by the time a plugin is called.

A contract that holds says that the names are there, not that they mean what they meant: that is
what the versions in ``results/`` were run for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcached_sglang import seam_checks

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Seam:
    """One thing of SGLang's that an elastic cache is built on."""

    name: str
    check: Callable[[], str | None]
    """What is wrong, or None. May raise what Python raises where a name is not there."""
    launched: bool | None = None
    """Whether it matters where our launcher serves, or where SGLang has plugins; None for both."""

    def wrong(self) -> str | None:
        """What is wrong in one line, or None."""
        try:
            return self.check()
        except (ImportError, AttributeError, TypeError, ValueError, OSError) as error:
            return str(error).partition("\n")[0] or type(error).__name__


def seams(launched: bool) -> list[Seam]:
    """Those that matter where our launcher serves, or where SGLang has plugins."""
    return [seam for seam in SEAMS if seam.launched in (None, launched)]


def broken(launched: bool) -> list[str]:
    """What is wrong with each seam that does not hold, in one line each."""
    lines = ((seam, seam.wrong()) for seam in seams(launched))
    return [f"{seam.name}: {wrong}" for seam, wrong in lines if wrong is not None]


SEAMS = (
    Seam("the registry of hooks", seam_checks.registry, launched=False),
    Seam("the places of our hooks", seam_checks.hooks, launched=False),
    Seam("the maker of pools", seam_checks.builder, launched=False),
    Seam("a scheduler", seam_checks.scheduler),
    Seam("a random seed that is drawn", seam_checks.seed),
    Seam("a batch that is full", seam_checks.full_batch),
    Seam("requests and prefix caches", seam_checks.requests_and_prefixes),
    Seam("an allocator's free pages", seam_checks.free_pages),
    Seam("a pipeline's turns", seam_checks.turns, launched=False),
    Seam("hybrid pools", seam_checks.hybrid_pools, launched=False),
    Seam("the scheduler's process", seam_checks.scheduler_process, launched=True),
    Seam("what the launcher's classes override", seam_checks.overrides, launched=True),
    Seam("how workers and model runners are made", seam_checks.makers, launched=True),
)
