"""vLLM's warm-up steps, which it makes up before there is a scheduler, over no more than one block.

They name the blocks 1, 2, 3 and on, one for each request (0.26 v1/worker/gpu/warmup.py): a thousand
blocks without memory, of which nothing is read back. Block 0, the null block, always has memory and
is read by nobody; all of them write there instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

BlockIds = tuple[list[int], ...]


def in_the_null_block(plan: SchedulerOutput) -> None:
    """Makes every block that a step plan hands out block 0, in place."""
    for request in plan.scheduled_new_reqs:
        request.block_ids = _null(request.block_ids)
    cached = plan.scheduled_cached_reqs
    cached.new_block_ids = [ids if ids is None else _null(ids) for ids in cached.new_block_ids]


def _null(block_ids: BlockIds) -> BlockIds:
    return tuple([0] * len(ids) for ids in block_ids)
