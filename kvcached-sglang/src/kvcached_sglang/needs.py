"""What a scheduler's next batch may take, and what its requests will."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

#: Waiting requests that are looked at one by one, at most.
_LOOKAHEAD = 256


@dataclass(frozen=True)
class Needs:
    """Pages, prefix hits not deducted."""

    decode: int
    """Of the requests that run, in their next step."""
    prefill: int
    """Of the prompts that the next batch may take in, as far as it takes them in."""
    rest: int
    """Of the prompt of which the next batch may take in a part, for all that follows: SGLang asks
    whether a whole prompt fits before it takes in the first chunk, and not again."""
    prompts: int
    """Of all prompts at hand, however many batches that takes."""
    half_in: int
    """Of those, of the prompt that is half in already, to its end."""
    chunk: int
    """Of those again, what the next batch takes."""
    oldest: int
    """In the hands of the request that would be retracted last."""
    in_place: int = 0
    """Of the prompt that is half in, where its last chunk ended."""

    @property
    def next_batch(self) -> int:
        """Pages that the next batch takes, or commits the engine to take, at most."""
        return self.decode + self.prefill + self.rest

    @property
    def ahead(self) -> int:
        """Pages to have ahead: of the next batch and, where prompts are left for it, of the one
        after, so that its memory is made while the device works on the first."""
        both = self.decode + min(max(self.prompts, self.prefill), 2 * self.prefill)
        return max(both, self.next_batch)


def needs_of(scheduler: Any, page_size: int) -> Needs:
    """Looks at a scheduler between two batches."""
    running = scheduler.running_batch.reqs
    last = scheduler.last_batch.reqs if scheduler.last_batch is not None else ()
    decode = len(running) + len(last) if running or last else 0
    chunks = _Chunks(scheduler, page_size, decode)
    # Requests whose grammar is made join the queue while the batch is formed.
    waiting = (*scheduler.waiting_queue, *scheduler.grammar_manager.grammar_queue)
    prefill = prompts = half_in = rest = begun = chunk = in_place = 0
    left = chunks.room
    first = scheduler.chunked_req
    if first is not None:
        there = _tokens_in_place(first)
        in_place = there // page_size
        tokens = max(0, _tokens(first) - there)
        prompts = chunks.pages(tokens)
        half_in = prompts + chunks.beside(tokens)
        prefill = chunk = chunks.pages(min(tokens, left))
        rest = half_in - prefill
        left -= _whole_pages(tokens, page_size)
    for tokens in map(_tokens, islice(waiting, _LOOKAHEAD)):
        prompts += chunks.pages(tokens)
        if left > 0:
            # A prompt that is not cut may overshoot what is left of the batch.
            prefill += chunks.pages(min(tokens, left) if chunks.cut else tokens)
            begun += 1
        left -= _whole_pages(tokens, page_size)
    # Behind a prompt that is half in and fills the batch nobody else comes in.
    if begun and (left < 0 or len(waiting) > _LOOKAHEAD):
        # Not all fit in. Which one is the last depends on hits and SGLang's policy: it may be any.
        longest = max(map(_tokens, waiting))
        most = chunks.pages(longest)
        if not chunks.cut:
            prefill = max(prefill, most)
        else:
            if len(waiting) <= _LOOKAHEAD:
                most = min(most, prompts - prefill)
            rest = max(rest, most + chunks.beside(longest, begun))
    oldest = _oldest(running, last, first, page_size)
    return Needs(decode, prefill, rest, prompts, half_in, chunk, oldest, in_place)


class _Chunks:
    """How a scheduler takes prompts in."""

    def __init__(self, scheduler: Any, page_size: int, decode: int) -> None:
        size: int = scheduler.chunked_prefill_size or 0
        self.cut = size > 0
        """Whether prompts are cut."""
        self.room: int = size if self.cut else scheduler.max_prefill_tokens
        """Tokens of prompts in a batch."""
        self._page_size = page_size
        self._decode = decode
        self._mixed = scheduler.is_mixed_chunk

    def pages(self, tokens: int) -> int:
        """Of so many tokens of a prompt, wherever they begin and end."""
        return tokens // self._page_size + 2

    def beside(self, tokens: int, begun: int = 0) -> int:
        """Taken by others before a prompt is in: where chunks and decodes are mixed, each request
        that runs, or was begun with it, takes a token a chunk."""
        if not self._mixed:
            return 0
        decodes = self._decode + begun
        turns = tokens // max(1, self.room - decodes) + 1
        return decodes * -(-turns // self._page_size)


def _oldest(running: Any, last: Any, half_in: Any, page_size: int) -> int:
    # Where nobody runs yet, that is one whose prompt is half in, or has just come in.
    oldest = [*running[:1]] or [*last[:1], *([half_in] if half_in is not None else [])]
    return max((pages_in_hands(request, page_size) for request in oldest), default=0)


def pages_in_hands(request: Any, page_size: int) -> int:
    """Pages of a request, its whole prompt and its next token included."""
    return _tokens(request) // page_size + 1


def _tokens(request: Any) -> int:
    return len(request.origin_input_ids) + len(request.output_ids)


def _whole_pages(tokens: int, page_size: int) -> int:
    return -(-tokens // page_size) * page_size


def _tokens_in_place(request: Any) -> int:
    """Tokens of a prompt in chunks up to the end of its last chunk: those have pages."""
    if hasattr(request, "get_fill_ids"):  # 0.5.14 and later
        return len(request.get_fill_ids())
    return len(request.fill_ids)


def is_idle(scheduler: Any) -> bool:
    """Whether a scheduler has no request in any stage that holds pages."""
    return (
        scheduler.last_batch is None
        and not scheduler.waiting_queue
        and not scheduler.running_batch.reqs
        and scheduler.chunked_req is None
    )
