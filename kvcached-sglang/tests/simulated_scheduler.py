"""A scheduler as SGLang's, with its rules and nothing else: each rank has one, and they must decide
alike. Requests come in at the same turns everywhere; all the rest each decides for itself from
what its allocator and its prefix cache tell.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from simulated_device import PAGES, Device

from kvcached_sglang import allocators
from kvcached_sglang.agreement import Agreement
from kvcached_sglang.keeper import MemoryKeeper


@dataclass
class Request:
    """One request; its pages hold a token each."""

    number: int
    origin_input_ids: list[int]
    answer: int
    output_ids: list[int] = field(default_factory=list)
    pages: list[torch.Tensor] = field(default_factory=list)
    gone: int = 0
    """Tokens behind a window, whose pages were given back."""

    @property
    def tokens(self) -> int:
        return len(self.origin_input_ids) + len(self.output_ids)

    @property
    def in_place(self) -> int:
        """Tokens that have pages, or had them."""
        return self.gone + self.held

    @property
    def held(self) -> int:
        return sum(pages.numel() for pages in self.pages)

    def get_fill_ids(self) -> list[int]:
        return (self.origin_input_ids + self.output_ids)[: self.in_place]


class StockAllocator:
    """SGLang's list of free pages, as its ``TokenToKVPoolAllocator`` keeps it."""

    device = "cpu"
    page_size = 1

    def __init__(self) -> None:
        self.free_pages = torch.arange(1, PAGES)

    def available_size(self) -> int:
        return len(self.free_pages)

    def merge_and_sort_free(self) -> None:
        self.free_pages = self.free_pages.sort().values

    def alloc(self, need_size: int) -> torch.Tensor | None:
        if need_size > len(self.free_pages):
            return None
        taken, self.free_pages = self.free_pages[:need_size], self.free_pages[need_size:]
        return taken

    def free(self, ids: torch.Tensor) -> None:
        self.free_pages = torch.cat((self.free_pages, ids))


class HookedAllocator(StockAllocator):
    """The same under our hooks."""

    def available_size(self) -> int:
        size: int = allocators.available_size(StockAllocator.available_size, self)
        return size

    def alloc(self, need_size: int) -> torch.Tensor | None:
        taken: torch.Tensor | None = allocators.alloc(StockAllocator.alloc, self, need_size)
        return taken

    def free(self, ids: torch.Tensor) -> None:
        allocators.free(StockAllocator.free, self, ids)


class PrefixCache:
    """What finished requests leave behind; the oldest goes first, a whole prefix at a time."""

    def __init__(self, allocator: HookedAllocator) -> None:
        self._allocator = allocator
        self._prefixes: deque[torch.Tensor] = deque()

    def keep(self, pages: torch.Tensor) -> None:
        self._prefixes.append(pages)

    def evictable_size(self) -> int:
        return sum(pages.numel() for pages in self._prefixes)

    def evict(self, tokens: int) -> None:
        while tokens > 0 and self._prefixes:
            pages = self._prefixes.popleft()
            tokens -= pages.numel()
            self._allocator.free(pages)


class Scheduler(SimpleNamespace):
    """One rank's scheduler, and what it decided."""

    def __init__(self, device: Device, agreement: Agreement, cap: int, chunk: int | None) -> None:
        """`cap`: of cached tokens. `chunk`: tokens of a prompt that a batch takes in at most, None
        where prompts are taken in whole."""
        allocator = HookedAllocator()
        super().__init__(
            running_batch=SimpleNamespace(reqs=[]),
            last_batch=None,
            waiting_queue=[],
            chunked_req=None,
            chunked_prefill_size=chunk,
            max_prefill_tokens=16,
            is_mixed_chunk=False,
            grammar_manager=SimpleNamespace(grammar_queue=[]),
            server_args=SimpleNamespace(sleep_on_idle=False),
            tree_cache=PrefixCache(allocator),
        )
        self._device = device
        self._allocator = allocator
        self.supply = device.supply
        allocators.put_under(allocator, self.supply)
        evict = lambda tree, tokens: tree.evict(tokens)  # noqa: E731
        self.keeper = MemoryKeeper(self, self.supply, agreement, evict, cap)
        self.decided: list[Any] = []
        self.waits = 0
        """How often what was available had no memory yet; each rank's own."""
        self.lacks = 0
        """How often not even what is about to be given back would do."""

    def turn(self, arrivals: list[tuple[int, int, int]]) -> None:
        """One turn of the loop. `arrivals`: (number, prompt, answer), in tokens."""
        for number, prompt, answer in arrivals:
            self.waiting_queue.append(Request(number, [0] * prompt, answer))
        self.keeper.before_batch()
        self._note("sees", self._available(), self.supply.withheld_tokens)
        self._check_sums()
        batch = self._prefill() or self._decode()
        self.last_batch = SimpleNamespace(reqs=batch) if batch else None
        if batch:
            self._device.launch(self.supply.launched())
        self._finish(batch)

    def rest(self, turns: int) -> None:
        """So many turns of a loop in which nobody asks for anything."""
        for _ in range(turns):
            self.keeper.before_batch()
        self._check_sums()
        self._note("rests", self._available(), self.tree_cache.evictable_size())

    def _available(self) -> int:
        return self._allocator.available_size()

    def _note(self, *what: Any) -> None:
        self.decided.append(what)

    def _check_sums(self) -> None:
        """SGLang's own leak check."""
        half_in = [self.chunked_req] if self.chunked_req is not None else []
        held = sum(request.held for request in (*self.running_batch.reqs, *half_in))
        cached = self.tree_cache.evictable_size()
        found = self._available() + cached + held + self.supply.withheld_tokens
        assert found == PAGES - 1, f"{found} of {PAGES - 1} pages are accounted for"

    def _prefill(self) -> list[Request]:
        taken: list[tuple[Request, int]] = []
        budget = self.chunked_prefill_size or self.max_prefill_tokens
        # Room for what runs to go on for a while, as SGLang estimates it.
        room = self._available() + self.tree_cache.evictable_size()
        room -= len(self.running_batch.reqs)
        half_in: Request | None = self.chunked_req
        if half_in is not None:
            # It goes on whatever there is room for.
            most = min(budget, room) if room > 0 else budget
            taken.append((half_in, min(half_in.tokens - half_in.in_place, most)))
            room -= taken[0][1] + 1
            budget -= taken[0][1]
            if half_in.tokens > half_in.in_place + taken[0][1]:
                budget = 0
            else:
                self.chunked_req = None
        while (
            budget > 0 and self.waiting_queue and self._asks(self.waiting_queue[0], budget) <= room
        ):
            request = self.waiting_queue[0]
            if request.tokens > budget and self.chunked_prefill_size is None and taken:
                break
            del self.waiting_queue[0]
            part = request.tokens
            if request.tokens > budget and self.chunked_prefill_size is not None:
                part = budget
                self.chunked_req = request
            room -= part + 1
            budget -= part
            taken.append((request, part))
        if not taken:
            return []
        self._note("begins", [(request.number, part) for request, part in taken])
        for request, part in taken:
            request.pages.append(self._take(part))
        batch = [request for request, _ in taken]
        self.running_batch.reqs += [it for it in batch if it is not self.chunked_req]
        return batch

    def _asks(self, request: Request, budget: int) -> int:
        """Tokens that there must be room for before a request is begun."""
        return request.tokens + 1

    def _decode(self) -> list[Request]:
        running: list[Request] = self.running_batch.reqs
        while running and len(running) > self._available() + self.tree_cache.evictable_size():
            retracted = running.pop()
            self._note("retracts", retracted.number)
            self._allocator.free(torch.cat(retracted.pages))
            retracted.pages, retracted.gone = [], 0
            self.waiting_queue.insert(0, retracted)
        if not running:
            return []
        for request, page in zip(running, self._take(len(running)).split(1), strict=True):
            request.pages.append(page)
        return list(running)

    def _take(self, tokens: int) -> torch.Tensor:
        missing = tokens - self._available()
        if missing > 0:
            self._note("evicts", missing)
            self.tree_cache.evict(missing)
        if tokens > self.supply.pool.num_free:
            self.waits += 1
            self.lacks += tokens > self.supply.pool.num_free + self.supply.pool.num_withheld
        ids = self._allocator.alloc(tokens)
        # SGLang stops here, too.
        assert ids is not None, f"no {tokens} pages, {self._available()} available"
        self._note("takes", ids.numel())
        assert self._device.has_memory(ids), "a page without memory"
        return ids

    def _finish(self, batch: list[Request]) -> None:
        running: list[Request] = self.running_batch.reqs
        for request in batch:
            if request is self.chunked_req:
                self._note("goes on", request.number)
                continue
            request.output_ids.append(0)
            if len(request.output_ids) >= request.answer:
                self._note("ends", request.number)
                running.remove(request)
                self.tree_cache.keep(torch.cat(request.pages))


def arrivals(
    dice: random.Random, turns: int, longest: int = 12
) -> list[list[tuple[int, int, int]]]:
    """What comes in at each turn, prompts of `longest` tokens at most; nothing after a while, so
    that engines come to rest."""
    numbers = iter(range(1000))
    return [
        [
            (next(numbers), dice.randrange(1, longest + 1), dice.randrange(1, 7))
            for _ in range(dice.choice((0, 0, 1, 2)))
            if turn < turns // 2
        ]
        for turn in range(turns)
    ]
