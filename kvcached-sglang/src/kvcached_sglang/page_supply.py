"""Pages for one SGLang allocator: the pool behind its lists of free pages.

What the engine may use and what has memory are two numbers. The engine sees *granted* pages, less
those in use; that number is the same on every rank of a tensor-parallel group and changes only
between batches. Which pages they are, and when their memory is committed, is each rank's own.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from kvcached_sglang import NotElastic
from kvcached_sglang.returned_ids import ReturnedIds

if TYPE_CHECKING:
    from kvcached import _C

#: How long a rank waits for memory that it was granted, in seconds, before it stops: it could not
#: go on without diverging from the others.
PATIENCE = 60.0
#: Between looks at the leases meanwhile, in seconds.
LOOK = 0.2


class PageSupply:
    """One rank's pages. One thread at a time: the scheduler's."""

    def __init__(self, pool: _C.Pool, device: torch.device, page_size: int) -> None:
        self.pool = pool
        self.page_size = page_size
        self.pages = pool.num_blocks - 1
        """Pages of the address space, without page 0."""
        self.nothing = torch.empty(0, dtype=torch.int64, device=device)
        """No ids, on the engine's device."""
        self._device = device
        self._pinned = device.type == "cuda"
        self._returned = ReturnedIds(pool, device)
        self._used = 0
        self._granted = self.pages
        self._step = 0
        self._take(1)  # page 0, for good: padded tokens are written there

    @property
    def used(self) -> int:
        """Pages in the engine's hands: of requests and of its prefix cache."""
        return self._used

    @property
    def free_pages(self) -> int:
        """Pages that have memory and are in nobody's hands, those on their way back included."""
        return self.pool.num_free + self._returned.pages

    @property
    def step(self) -> int:
        """The number of the last batch that was launched."""
        return self._step

    @property
    def available_tokens(self) -> int:
        """Tokens that the engine may still take."""
        return max(0, self._granted - self._used) * self.page_size

    @property
    def withheld_tokens(self) -> int:
        """Tokens of the address space that are neither in use nor available now."""
        return (self.pages - self._used) * self.page_size - self.available_tokens

    def take(self, pages: int) -> torch.Tensor | None:
        """Takes pages, lowest first, as ids on the engine's device. None where fewer are granted;
        what is granted and has no memory yet is waited for."""
        if pages > self._granted - self._used:
            return None
        if pages == 0:
            return self.nothing
        self._back(pages)
        self._used += pages
        return self._take(pages).to(self._device, non_blocking=True)

    def _take(self, pages: int) -> torch.Tensor:
        ids = torch.empty(pages, dtype=torch.int64, pin_memory=self._pinned)
        self.pool.take_into(ids)
        return ids

    def _back(self, pages: int) -> None:
        if pages > self.pool.num_free:
            self._returned.settle(wait=True)
        if pages > self.pool.num_free:
            # Pages that came back since the grant, to extents that are being emptied.
            self.pool.stop_emptying()
        deadline = time.monotonic() + PATIENCE
        while not self.pool.ensure(pages, LOOK):
            if time.monotonic() > deadline:
                raise NotElastic(
                    f"kvcached: {pages} pages were granted, and {PATIENCE:g} s later the device "
                    f"still has memory for {self.pool.num_free}; kvctl list shows who holds it"
                )
            self.retry()

    def give(self, ids: torch.Tensor) -> None:
        """Returns pages: available at once, handed out when their ids are known here."""
        count = ids.numel()
        if count:
            self._used -= count
            self._returned.put(ids)

    def clear(self) -> None:
        """Returns all pages but page 0."""
        self._returned.settle(wait=True)
        self.pool.give_rest(1)
        self._used = 0

    def free_ids(self) -> torch.Tensor:
        """Ids of free pages with memory. For the engine's own checks; slow."""
        self._returned.settle(wait=True)
        return torch.tensor(self.pool.in_order(), dtype=torch.int64, device=self._device)

    def launched(self) -> int:
        """A batch has been launched and fences the pages freed from now on; returns its number."""
        self._step += 1
        self.pool.begin_step(self._step)
        # The engine keeps no plan of it beyond what is on its streams.
        self.pool.processed(self._step)
        return self._step

    def retry(self) -> None:
        """Lets a refusal that has aged be asked again."""
        self.pool.begin_step(self._step)

    def settle(self) -> None:
        """Takes in which pages came back, as far as the device has told."""
        self._returned.settle(wait=False)

    def offer(self, need: int) -> int:
        """Pages that this rank could let the engine use, those in use included.

        Beside the pages that have memory that is what could still be granted, but only while the
        `need` of the next batch is there: a batch that was formed must not fail.
        """
        pool = self.pool
        there = pool.num_settled - 1
        if self.free_pages >= need:
            there += pool.num_growable
        return min(self.pages, there)

    def grant(self, pages: int) -> None:
        """Sets what the engine may use, in use included; the same on every rank."""
        self._granted = pages
