"""A scheduler as SGLang's for a hybrid model, with the pages of its sliding windows alone, as if
there were always enough of those of full attention.
"""

from __future__ import annotations

from typing import Any

import torch
from simulated_device import Device
from simulated_scheduler import Request, Scheduler

from kvcached_sglang.agreement import Agreement
from kvcached_sglang.hybrid_keeper import WindowKeeper

WINDOW = 5


class WindowScheduler(Scheduler):
    """Gives back what lies behind a window, as late as SGLang does with overlapping batches."""

    def __init__(self, device: Device, agreement: Agreement, cap: int, chunk: int | None) -> None:
        super().__init__(device, agreement, cap, chunk)
        self.sliding_window_size = WINDOW
        self.tree_cache.swa_evictable_size = self.tree_cache.evictable_size
        evict = lambda tree, tokens: tree.evict(tokens)  # noqa: E731
        self.keeper = WindowKeeper(self, self.supply, agreement, evict, cap)

    def _asks(self, request: Request, budget: int) -> int:
        """SGLang's estimate (``estimate_swa_kv_tokens``): of a prompt that will be cut it has the
        first chunk alone, and the window."""
        first = request.tokens
        if self.chunked_prefill_size is not None:
            first = min(first, budget)
        return max(0, first - WINDOW) + min(request.tokens + request.answer, WINDOW) + 1

    def _prefill(self) -> list[Request]:
        if self.chunked_req is not None:
            self._give_behind(self.chunked_req, self.chunked_prefill_size or 0)
        return super()._prefill()

    def _decode(self) -> list[Request]:
        for request in self.running_batch.reqs:
            self._give_behind(request, 0)
        return super()._decode()

    def _give_behind(self, request: Request, late: int) -> None:
        """`late`: tokens of the batch that still runs."""
        behind = request.in_place - WINDOW - late - request.gone
        if behind <= 0:
            return
        pages: Any = torch.cat(request.pages)
        self._note("leaves", request.number, behind)
        self._allocator.free(pages[:behind])
        request.pages = [pages[behind:]]
        request.gone += behind
