"""vLLM's real scheduler, KV cache manager and block pool over our pool, without a model.

Enough to tell a version whose engine cannot be started on this machine: everything of it that
decides about blocks is the engine's own, and a pager commits real memory. Where a model would
run, every request is given a token.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import pickle
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from conftest import BLOCK_TOKENS
from kvcached import _C, shm
from kvcached_vllm import engine, identity
from kvcached_vllm.attach import settings
from kvcached_vllm.kv_layout import geometry_of
from kvcached_vllm.kv_placement import region_bytes

LAYERS = ["layer0", "layer1"]
NUM_BLOCKS = 512


def cache_config() -> KVCacheConfig:
    """Two layers side by side, as this version of vLLM describes them."""
    latent = {"use_mla": False} if "use_mla" in FullAttentionSpec.__dataclass_fields__ else {}
    spec = FullAttentionSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=64, dtype=torch.float32, **latent
    )
    page = spec.page_size_bytes
    size = NUM_BLOCKS * page
    if engine.describes_one_buffer():
        whole = {"size": size * len(LAYERS), "layers": LAYERS}
        tensors = [KVCacheTensor(**whole, layer_stride=size, block_stride=page)]
    else:
        tensors = [KVCacheTensor(size=size, shared_by=[layer]) for layer in LAYERS]
    return KVCacheConfig(
        num_blocks=NUM_BLOCKS,
        kv_cache_tensors=tensors,
        kv_cache_groups=[KVCacheGroupSpec(LAYERS, spec)],
    )


class Harness:
    """A scheduler, and a worker's row and pager without the worker."""

    def __init__(self, vllm_config: Any, limit_bytes: int) -> None:
        from kvcached_vllm.scheduler import ElasticScheduler

        wanted = settings()
        config = cache_config()
        vllm_config.cache_config.num_gpu_blocks = NUM_BLOCKS
        driver = _C.host_driver()
        driver.probe()
        geometry = geometry_of(config, len(LAYERS), driver, 0)
        self.row_path = str(identity.row_path(vllm_config, wanted, 0))
        self.pager = _C.Pager(
            driver,
            geometry,
            self.row_path,
            identity.engine_name(vllm_config, wanted),
            "layer",
            0,
            limit_bytes,
            ledger=str(shm.ledger_path(identity.directory(wanted), driver.device_id)),
            terms=_C.LeaseTerms("vllm", identity.instance_of(vllm_config), limit_bytes=limit_bytes),
        )
        self.pager.start()
        self.row = _C.Row.attach(self.row_path)
        self.per_extent = geometry.blocks_per_extent
        takes = inspect.signature(ElasticScheduler.__mro__[2].__init__).parameters
        options = {"block_size": BLOCK_TOKENS, "hash_block_size": BLOCK_TOKENS, "log_stats": True}
        self.scheduler: Any = ElasticScheduler(
            vllm_config=vllm_config,
            kv_cache_config=config,
            structured_output_manager=StructuredOutputManager(vllm_config),
            **{name: value for name, value in options.items() if name in takes},
        )
        assert region_bytes(config) == len(LAYERS) * NUM_BLOCKS * config_page(config)

    def add(self, name: str, prompt: list[int], tokens: int) -> None:
        takes = inspect.signature(Request.__init__).parameters
        parameters = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        options = {
            "request_id": name,
            "prompt_token_ids": prompt,
            "sampling_params": parameters,
            "pooling_params": None,
            "eos_token_id": None,
            "multi_modal_inputs": None,
            "multi_modal_kwargs": None,
            "multi_modal_hashes": None,
            "multi_modal_placeholders": None,
        }
        if (hasher := getattr(kv_cache_utils, "get_request_block_hasher", None)) is not None:
            options["block_hasher"] = hasher(BLOCK_TOKENS, hash_of)  # since 0.10
        self.scheduler.add_request(
            Request(**{key: value for key, value in options.items() if key in takes})
        )

    def step(self) -> Any:
        """One step: every block that its plan hands out has memory; returns the plan."""
        plan = self.scheduler.schedule()
        for request in plan.scheduled_new_reqs:
            self.check(request.block_ids)
        for blocks in plan.scheduled_cached_reqs.new_block_ids:
            self.check(blocks or ())
        self.pager.launched(plan.kvcached_step)
        names = list(plan.num_scheduled_tokens)
        left = {request.request_id: request for request in self.scheduler.running}
        done: list[Any] = [
            [7] if left[name].num_computed_tokens >= left[name].num_tokens else [] for name in names
        ]
        takes = ModelRunnerOutput.__dataclass_fields__
        if "ndarray" in str(takes["sampled_token_ids"].type):  # in 0.11
            done = [np.array(tokens) for tokens in done]
        options = {
            "req_ids": names,
            "req_id_to_index": {name: index for index, name in enumerate(names)},
            "sampled_token_ids": done,
            "logprobs": None,
            "prompt_logprobs_dict": {},
            "pooler_output": [],
            "spec_token_ids": None,
        }
        output = ModelRunnerOutput(**{key: value for key, value in options.items() if key in takes})
        self.scheduler.update_from_output(plan, output)
        return plan

    def first_step(self) -> Any:
        """Steps until a new request is let in, which a pager on a busy machine may delay; returns
        the plan."""
        for _ in range(1000):
            plan = self.step()
            if plan.scheduled_new_reqs:
                return plan
        raise AssertionError("nobody was let in")

    def check(self, groups: Any) -> None:
        committed = self.row.committed()
        for block in (block for group in groups for block in group):
            assert committed[block // self.per_extent], f"block {block} has no memory"

    def committed_blocks(self) -> int:
        return sum(self.row.committed()) * self.per_extent

    def run(self, most: int = 2000) -> int:
        """Steps until nothing is left; returns how many, or fails."""
        for count in range(most):
            if not self.scheduler.has_unfinished_requests():
                return count
            self.step()
        raise AssertionError(f"not done after {most} steps")

    def stop(self) -> None:
        self.scheduler.shutdown()
        self.pager.stop()


def hash_of(value: Any) -> bytes:
    return hashlib.sha256(pickle.dumps(value)).digest()


def config_page(config: KVCacheConfig) -> int:
    page: int = config.kv_cache_groups[0].kv_cache_spec.page_size_bytes
    return page


@pytest.fixture
def harness(vanilla_config: Any, request: pytest.FixtureRequest) -> Iterator[Harness]:
    if hasattr(kv_cache_utils, "init_none_hash"):  # since 0.10
        kv_cache_utils.init_none_hash(hash_of)
    config = copy.deepcopy(vanilla_config)
    config.instance_id = request.node.name[:20]
    share = getattr(request, "param", 1.0)
    spec = cache_config().kv_cache_groups[0].kv_cache_spec
    whole = NUM_BLOCKS * len(LAYERS) * spec.page_size_bytes
    made = Harness(config, int(whole * share))
    yield made
    made.stop()


def prompt(number: int, length: int) -> list[int]:
    return [(number * 31 + position * 7) % 250 for position in range(length)]


def test_every_planned_block_has_memory_and_all_come_back(harness: Harness) -> None:
    for number in range(12):
        harness.add(f"r{number}", prompt(number, 40 + 20 * number), 20 + 5 * number)
    harness.step()
    assert harness.committed_blocks() < NUM_BLOCKS, "everything was committed at once"
    harness.run()
    pool = harness.scheduler.kv_cache_manager.block_pool
    assert [block.block_id for block in pool.blocks if block.ref_cnt and not block.is_null] == []


def test_memory_grows_with_requests(harness: Harness) -> None:
    before = harness.committed_blocks()
    for number in range(12):
        harness.add(f"r{number}", prompt(number, 250), 20)
    for _ in range(15):
        harness.step()
    pool = harness.scheduler.kv_cache_manager.block_pool
    live = sum(block.ref_cnt > 0 for block in pool.blocks)
    assert live > 100
    assert before + 90 < live <= harness.committed_blocks() < 2 * live


@pytest.mark.parametrize("harness", [0.15], indirect=True)
def test_under_a_limit_requests_wait_or_are_preempted_and_all_finish(harness: Harness) -> None:
    for number in range(12):
        harness.add(f"r{number}", prompt(number, 100), 100)
    harness.run()
    assert harness.committed_blocks() <= 0.15 * NUM_BLOCKS + harness.per_extent


def test_an_aborted_request_gives_its_blocks_back(harness: Harness) -> None:
    from vllm.v1.request import RequestStatus

    harness.add("stays", prompt(1, 100), 10)
    harness.add("goes", prompt(2, 100), 100)
    harness.step()
    harness.scheduler.finish_requests("goes", RequestStatus.FINISHED_ABORTED)
    harness.run()
    pool = harness.scheduler.kv_cache_manager.block_pool
    assert [block.block_id for block in pool.blocks if block.ref_cnt and not block.is_null] == []


def test_a_repeated_prompt_is_found_and_forgotten(harness: Harness) -> None:
    for name in ("first", "second"):
        harness.add(name, prompt(1, 160), 2)
        (new,) = harness.first_step().scheduled_new_reqs
        assert (new.num_computed_tokens > 0) == (name == "second")
        harness.run()
    assert harness.scheduler.reset_prefix_cache()
    harness.add("third", prompt(1, 160), 2)
    (new,) = harness.first_step().scheduled_new_reqs
    assert new.num_computed_tokens == 0
    harness.run()


def test_memory_is_ordered_for_many_steps_at_once_where_a_call_commits_much(
    harness: Harness,
) -> None:
    def growing_steps(name: str, refills: bool) -> int:
        harness.scheduler._refills = refills
        # Their blocks are full at different steps.
        for number in range(64):
            harness.add(f"{name}{number}", prompt(number, 17 + number % 16), 64)
        pool = harness.scheduler._supply.pool
        grown = 0
        while harness.scheduler.has_unfinished_requests():
            before = pool.num_usable + pool.wanted_extents * harness.per_extent
            harness.step()
            grown += pool.num_usable + pool.wanted_extents * harness.per_extent > before
            time.sleep(0.002)  # for the pager, as a device would take
        # As if it had never run.
        harness.scheduler.reset_prefix_cache()
        harness.scheduler._supply.tidy(idle=True)
        return grown

    little_by_little = growing_steps("a", refills=False)
    assert growing_steps("b", refills=True) < little_by_little / 2
