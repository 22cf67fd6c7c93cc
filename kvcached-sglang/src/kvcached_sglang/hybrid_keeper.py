"""Looks after both caches of a hybrid model, each by a keeper of its own.

A page of one is no page of the other, and the pages of a window go while their request runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kvcached_sglang.keeper import MemoryKeeper

if TYPE_CHECKING:
    from kvcached_sglang.needs import Needs


class FullKeeper(MemoryKeeper):
    """Of the pages of full attention."""

    def _cached_tokens(self) -> int:
        size: int = self._scheduler.tree_cache.full_evictable_size()
        return size


class WindowKeeper(MemoryKeeper):
    """Of the pages of sliding windows."""

    def _cached_tokens(self) -> int:
        size: int = self._scheduler.tree_cache.swa_evictable_size()
        return size

    def _needs(self) -> Needs:
        # What lies behind the window goes on the way: no prompt needs more than the next batch.
        needs = super()._needs()
        return replace(
            needs,
            prompts=min(needs.prompts, needs.prefill),
            rest=min(needs.rest, needs.prefill),
            half_in=needs.chunk,
        )


class HybridKeeper:
    """Both; each settles with the other ranks for itself, at the same turns."""

    def __init__(self, full: MemoryKeeper, window: MemoryKeeper) -> None:
        self._keepers = (full, window)

    def before_batch(self) -> None:
        """One turn of the loop."""
        for keeper in self._keepers:
            keeper.before_batch()
