"""What a scheduler's next batch may take, and what its requests will."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

#: Waiting requests that are looked at for the ledger's sake, at most.
_LOOKAHEAD = 256


@dataclass(frozen=True)
class Needs:
    """Pages, prefix hits not deducted."""

    decode: int
    """Of the requests that run, in their next step."""
    prefill: int
    """Of the prompts that the next batch may take in."""
    prompts: int
    """Of all prompts at hand, however many batches that takes."""
    chunk: int
    """Of those, of the prompt that is half in: SGLang takes them without asking."""
    oldest: int
    """In the hands of the request that would be retracted last."""

    @property
    def next_batch(self) -> int:
        """Pages that the next batch takes at most."""
        return self.decode + self.prefill

    @property
    def ahead(self) -> int:
        """Pages to have ahead: of the next batch and, where prompts are left for it, of the one
        after, so that its memory is made while the device works on the first."""
        return self.decode + min(max(self.prompts, self.prefill), 2 * self.prefill)


def needs_of(scheduler: Any, page_size: int) -> Needs:
    """Looks at a scheduler between two batches."""
    running = scheduler.running_batch.reqs
    last = scheduler.last_batch.reqs if scheduler.last_batch is not None else ()
    whole = scheduler.chunked_prefill_size
    chunked = whole is not None and whole > 0
    left = whole if chunked else scheduler.max_prefill_tokens
    prefill = prompts = chunk = 0
    waiting = islice(scheduler.waiting_queue, _LOOKAHEAD)
    first = [scheduler.chunked_req] if scheduler.chunked_req is not None else []
    for request in (*first, *waiting):
        tokens = len(request.origin_input_ids) + len(request.output_ids)
        if request is scheduler.chunked_req:
            tokens = max(0, tokens - _tokens_in_place(request))
        prompts += tokens // page_size + 1
        if left > 0:
            # A prompt that is not cut may overshoot what is left of the batch.
            taken = min(tokens, left) if chunked else tokens
            prefill += taken // page_size + 2
            if request is scheduler.chunked_req:
                chunk = prefill
            left -= taken
    decode = len(running) + len(last) if running or last else 0
    oldest = 0
    if running:
        oldest = (len(running[0].origin_input_ids) + len(running[0].output_ids)) // page_size + 1
    return Needs(decode, prefill, prompts, chunk, oldest)


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
