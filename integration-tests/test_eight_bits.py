"""Engines whose KV cache is of 8-bit floats.

vLLM 0.32 takes them on a CPU with AVX-512 or AMX only (v1/attention/backends/cpu_attn.py,
_get_attn_isa). kvcached-vllm/tests/test_cache_types.py lays every type of cache out anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import elasticity
from comparison import assert_same
from engine import Outcome, Scenario

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.cpu._is_avx512_supported() or torch.cpu._is_amx_tile_supported()),
        reason="vLLM has no 8-bit attention for this processor",
    ),
]

SCENARIOS = (Scenario("mixed_lengths", {"requests": 80}), Scenario("shared_prefixes"))


@pytest.mark.parametrize("cache", ["fp8_e4m3", "fp8_e5m2"])
def test_a_cache_of_8_bits_gives_the_tokens_of_a_vanilla_one(
    model: Path,
    run_vanilla: Callable[..., Outcome],
    run_elastic: Callable[..., Outcome],
    cache: str,
) -> None:
    vanilla, elastic = (
        run(model, SCENARIOS, kv_cache_dtype=cache) for run in (run_vanilla, run_elastic)
    )
    for scenario in SCENARIOS:
        expected, actual = (side.result(scenario.name) for side in (vanilla, elastic))
        assert_same(expected["tokens"], actual["tokens"])
        assert actual["blocks_after"]["live"] == 0
    assert elasticity.complaints(elastic.log) == []
