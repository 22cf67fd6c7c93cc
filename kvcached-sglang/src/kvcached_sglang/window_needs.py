"""What a scheduler's next batch may take of the pages of sliding windows.

What lies behind a window goes while its request runs. So a prompt in chunks takes, however long it
is, the window, a chunk that SGLang has not given back yet (with overlapping batches it waits for
the one before), and the chunk that comes in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvcached_sglang.needs import Needs


def needs_of_windows(scheduler: Any, needs: Needs, page_size: int) -> Needs:
    """The part of `needs`, those of full attention, that windows have."""
    span = span_of(scheduler, needs, page_size)
    half_in = min(needs.half_in, max(needs.chunk, span - needs.in_place))
    # Of a prompt behind it, as far as that is longer.
    others = needs.rest if needs.rest > needs.half_in - needs.chunk else 0
    return replace(
        needs,
        rest=max(half_in - needs.chunk, min(others, span)),
        prompts=min(needs.prompts, max(needs.prefill, span)),
        half_in=half_in,
    )


def span_of(scheduler: Any, needs: Needs, page_size: int) -> int:
    """Pages that a prompt in chunks holds at a time, at most."""
    chunk: int = max(0, scheduler.chunked_prefill_size or 0)
    window: int = scheduler.sliding_window_size or 0
    # Where chunks and decodes are mixed, each request that runs takes a token a chunk.
    beside = 2 * needs.decode if scheduler.is_mixed_chunk else 0
    # One that is cut at either end, and the one that SGLang keeps behind a window.
    return (window + 2 * chunk) // page_size + 3 + beside
