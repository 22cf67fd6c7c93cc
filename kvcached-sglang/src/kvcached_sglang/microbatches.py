"""The microbatches of a scheduler that is a stage of a pipeline.

SGLang's ``event_loop_pp`` keeps for each one the batch that was launched last (``mbs``), the one
whose results were seen last (``last_mbs``) and the requests that run (``running_mbs``). Each stage
has the same at the same turn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvcached_sglang.needs import needs_of, pages_in_hands

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
    oldest of theirs, in whichever list of SGLang's they are."""
    batches = (*scheduler.running_mbs, *scheduler.mbs, *scheduler.last_mbs)
    oldest = [batch.reqs[0] for batch in batches if batch is not None and batch.reqs]
    if scheduler.chunked_req is not None:
        oldest.append(scheduler.chunked_req)
    most = max((pages_in_hands(it, page_size) for it in oldest if not it.finished()), default=0)
    return replace(needs_of(scheduler, page_size), oldest=most)
