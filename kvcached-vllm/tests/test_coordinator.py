"""The elastic coordinator over vLLM's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.v1.core.kv_cache_coordinator import get_kv_cache_coordinator
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
)

from kvcached_vllm.coordinator import elastic_coordinator

TOKENS = 16


class Recorder:
    """A supplier that writes down what it is asked and answers with marks."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def promise(self, need: int) -> int:
        self.asked.append(("promise", need))
        return need - 1000

    def provide(self, need: int, request_id: str, hits: Any) -> int:
        self.asked.append(("provide", need, request_id, hits))
        return need + 1000


SHAPE = {"block_size": TOKENS, "num_kv_heads": 2, "head_size": 64, "dtype": torch.float32}
STATE = MambaSpec(
    block_size=TOKENS, shapes=((4, 4),), dtypes=(torch.float32,), mamba_cache_mode="align"
)


def vanilla(groups: int, caching: bool) -> Any:
    specs = [FullAttentionSpec(**SHAPE), SlidingWindowSpec(**SHAPE, sliding_window=64)]
    return coordinator_of(specs[:groups], caching)


def coordinator_of(specs: list[KVCacheSpec], caching: bool = True) -> Any:
    config = KVCacheConfig(
        num_blocks=100,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec([f"layer{n}"], spec) for n, spec in enumerate(specs)],
    )
    return get_kv_cache_coordinator(
        config,
        max_model_len=512,
        max_in_flight_tokens=512,
        use_eagle=False,
        enable_caching=caching,
        enable_kv_cache_events=False,
        dcp_world_size=1,
        pcp_world_size=1,
        scheduler_block_size=TOKENS,
        hash_block_size=TOKENS,
    )


def ask(coordinator: Any, groups: int, tokens: int = 100, hits: Any = None, **keywords: Any) -> int:
    answer: int = coordinator.get_num_blocks_to_allocate(
        "request",
        tokens,
        hits or tuple([] for _ in range(groups)),
        num_encoder_tokens=0,
        total_computed_tokens=0,
        num_local_computed_tokens=0,
        num_tokens_main_model=tokens,
        **keywords,
    )
    return answer


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_gate_is_promised_and_the_real_check_provided(groups: int, caching: bool) -> None:
    coordinator = vanilla(groups, caching)
    need = ask(coordinator, groups)
    assert need == groups * 7
    supplier = Recorder()
    elastic = elastic_coordinator(coordinator, supplier)
    assert ask(elastic, groups, apply_admission_cap=True) == need - 1000
    assert ask(elastic, groups) == need + 1000
    hits = tuple([] for _ in range(groups))
    assert supplier.asked == [("promise", need), ("provide", need, "request", hits)]


def test_the_vanilla_object_answers_as_before() -> None:
    coordinator = vanilla(1, True)
    supplier = Recorder()
    elastic_coordinator(coordinator, supplier)
    assert ask(coordinator, 1) == 7
    assert supplier.asked == []


def test_the_two_share_all_state() -> None:
    coordinator = vanilla(1, True)
    elastic: Any = elastic_coordinator(coordinator, Recorder())
    assert isinstance(elastic, type(coordinator))
    assert elastic.block_pool is coordinator.block_pool
    elastic.retention_interval = 5
    assert coordinator.retention_interval == 5
    assert elastic.single_type_managers is coordinator.single_type_managers


def test_a_state_that_is_to_be_used_a_step_later_is_never_provided() -> None:
    """vLLM asks for more blocks than there are, and an elastic pool could have just that many."""
    coordinator = coordinator_of([FullAttentionSpec(**SHAPE), STATE])
    supplier = Recorder()
    elastic = elastic_coordinator(coordinator, supplier)
    state = coordinator.block_pool.blocks[1]
    state._block_hash = b"of this step"
    coordinator.single_type_managers[1].cached_blocks_this_step.add(state.block_hash)
    need = ask(elastic, 2, hits=([], [state]))
    assert need > 100_000_000
    assert supplier.asked == []
    assert coordinator.block_pool.num_gpu_blocks == 100


def test_other_states_are_provided_as_blocks_are() -> None:
    coordinator = coordinator_of([FullAttentionSpec(**SHAPE), STATE])
    supplier = Recorder()
    elastic = elastic_coordinator(coordinator, supplier)
    need = ask(coordinator, 2)
    assert ask(elastic, 2) == need + 1000
    assert [asked[:2] for asked in supplier.asked] == [("provide", need)]


def test_no_class_of_vllm_is_changed() -> None:
    coordinator = vanilla(1, True)
    base = type(coordinator)
    before = dict(vars(base))
    elastic = elastic_coordinator(coordinator, Recorder())
    assert dict(vars(base)) == before
    assert type(coordinator) is base
    assert type(elastic) is not base
