"""The microbatches of a scheduler that is a stage of a pipeline.

SGLang's ``event_loop_pp`` keeps for each one the batch that was launched last (``mbs``), the one
whose results were seen last (``last_mbs``) and the requests that run (``running_mbs``). Each stage
has the same at the same turn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvcached_sglang.needs import needs_of

if TYPE_CHECKING:
    from kvcached_sglang.needs import Needs


def requests_of(scheduler: Any) -> int:
    """Requests of all microbatches that go on."""
    batches = (*scheduler.running_mbs, *scheduler.mbs, *scheduler.last_mbs)
    return len(
        {
            id(request)
            for batch in batches
            if batch is not None
            for request in batch.reqs
            if not request.finished()
        }
    )


def is_idle(scheduler: Any) -> bool:
    """Whether a stage has no request in any microbatch, and none that waits."""
    return (
        not scheduler.waiting_queue
        and scheduler.chunked_req is None
        and not any(batch is not None for batch in scheduler.mbs)
        and requests_of(scheduler) == 0
    )


def needs_of_stage(scheduler: Any, page_size: int) -> Needs:
    """What the next microbatch may take; the oldest request is the largest of those that are the
    oldest of theirs."""
    oldest = 0
    for batch in scheduler.running_mbs:
        if batch.reqs:
            first = batch.reqs[0]
            tokens = len(first.origin_input_ids) + len(first.output_ids)
            oldest = max(oldest, tokens // page_size + 1)
    return replace(needs_of(scheduler, page_size), oldest=oldest)
