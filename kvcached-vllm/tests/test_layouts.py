"""Which of vLLM's layouts a worker prefers, over a worker that has nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, SinkFullAttentionSpec

from kvcached_vllm.attach import settings
from kvcached_vllm.worker import ElasticWorker

NAMES = ["LBHNC", "BLHNC", "LBNHC"]
SHAPE: dict[str, Any] = {
    "block_size": 16,
    "num_kv_heads": 2,
    "head_size": 64,
    "dtype": torch.float32,
}
FULL = FullAttentionSpec(**SHAPE)
SINKS = SinkFullAttentionSpec(**SHAPE)


class Vanilla:
    """What ElasticWorker asks of vLLM's worker here."""

    def get_supported_kv_cache_layouts(self) -> list[str]:
        return list(NAMES)


class Worker(ElasticWorker, Vanilla):
    def __init__(self, device: str, spec: KVCacheSpec) -> None:
        self._device = SimpleNamespace(type=device)  # type: ignore[assignment]
        self._spec = spec

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        return {"layer": self._spec}


@pytest.fixture(autouse=True)
def wanted(set_environment: Any) -> Any:
    def want(layout: str) -> None:
        set_environment(KVCACHED_LAYOUT=layout)

    want("auto")
    return want


def test_on_a_gpu_the_layers_of_a_block_lie_together() -> None:
    assert settings().layout == "auto"
    assert Worker("cuda", FULL).get_supported_kv_cache_layouts() == ["BLHNC", "LBHNC", "LBNHC"]


def test_on_a_cpu_vllms_own_choice_stays() -> None:
    assert Worker("cpu", FULL).get_supported_kv_cache_layouts() == NAMES


def test_a_users_choice_counts_on_a_cpu_too(wanted: Any) -> None:
    wanted("block")
    assert Worker("cpu", FULL).get_supported_kv_cache_layouts()[0] == "BLHNC"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_cache_that_is_not_covered_is_laid_out_as_in_vanilla(device: str, wanted: Any) -> None:
    wanted("block")
    assert Worker(device, SINKS).get_supported_kv_cache_layouts() == NAMES
