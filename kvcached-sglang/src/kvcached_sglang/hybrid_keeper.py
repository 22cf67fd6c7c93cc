"""Looks after both caches of a hybrid model, each by a keeper of its own.

A page of one is no page of the other, and the pages of a window go while their request runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcached_sglang.agreement import Terms
from kvcached_sglang.keeper import MemoryKeeper
from kvcached_sglang.window_needs import needs_of_windows

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
        return needs_of_windows(self._scheduler, super()._needs(), self._supply.page_size)

    def _own_terms(self, needs: Needs, evict: int) -> Terms:
        terms = super()._own_terms(needs, evict)
        supply, cached = self._supply, self._cached_tokens() // self._supply.page_size
        others = supply.used - cached
        wanted = min(needs.next_batch, supply.pages - others)
        if needs.rest == 0 or supply.free_pages + cached >= wanted:
            return terms
        # Of a prompt that will be cut SGLang asks for the first chunk alone, and would begin it. It
        # counts on cached pages, too; the prompt needs all of these itself.
        least = others + needs.decode + needs.half_in
        return Terms(min(terms.pages, least), self._cached_tokens())


class HybridKeeper:
    """Both; each settles with the other ranks for itself, at the same turns."""

    def __init__(self, full: MemoryKeeper, window: MemoryKeeper) -> None:
        self._keepers = (full, window)

    def before_batch(self) -> None:
        """One turn of the loop."""
        for keeper in self._keepers:
            keeper.before_batch()
