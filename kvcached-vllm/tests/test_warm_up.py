"""The steps that vLLM makes up to warm up, over vLLM's own plans."""

from __future__ import annotations

from vllm import SamplingParams
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

from kvcached_vllm.warm_up import in_the_null_block


def test_every_block_that_a_plan_hands_out_becomes_the_null_block() -> None:
    plan = SchedulerOutput.make_empty()
    plan.scheduled_new_reqs = [
        NewRequestData(
            req_id=f"warm-up-{number}",
            prompt_token_ids=[1, 2],
            mm_features=[],
            sampling_params=SamplingParams(),
            pooling_params=None,
            block_ids=([1 + number], [7, 8]),
            num_computed_tokens=0,
            lora_request=None,
        )
        for number in range(2)
    ]
    cached = CachedRequestData.make_empty()
    cached.new_block_ids = [([5], []), None]
    plan.scheduled_cached_reqs = cached
    in_the_null_block(plan)
    assert [request.block_ids for request in plan.scheduled_new_reqs] == [([0], [0, 0])] * 2
    assert plan.scheduled_cached_reqs.new_block_ids == [([0], []), None]
