"""Where vLLM before 0.29 puts its layers' pages, over vLLM's own objects; test_kv_layout.py has the
later versions."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
)

from kvcached import _C
from kvcached_vllm import engine
from kvcached_vllm.kv_layout import geometry_of, layout_of
from kvcached_vllm.kv_placement import (
    allocations_of,
    can_pack,
    packed,
    region_bytes,
    spans_of,
)

PACKS = engine.packs_blocks() and not engine.describes_one_buffer()

pytestmark = pytest.mark.skipif(not PACKS, reason="no packed tensors in this vLLM")

LAYERS = [f"layers.{number}.attn" for number in range(3)]
BLOCKS = 64


def spec(**changes: object) -> FullAttentionSpec:
    made = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
    return dataclasses.replace(made, **{"indexes_kv_by_block_stride": True, **changes})


PAGE = spec().page_size_bytes if PACKS else 0


def config(kind: FullAttentionSpec) -> KVCacheConfig:
    tensors = [
        KVCacheTensor(size=BLOCKS * kind.page_size_bytes, shared_by=[layer]) for layer in LAYERS
    ]
    return KVCacheConfig(BLOCKS, tensors, [KVCacheGroupSpec(LAYERS, kind)])


def test_tensors_lie_behind_each_other_in_one_region() -> None:
    made = config(spec())
    assert allocations_of(made) == [(n * BLOCKS * PAGE, BLOCKS * PAGE) for n in range(3)]
    assert region_bytes(made) == 3 * BLOCKS * PAGE
    assert spans_of(made) == [(0, n * BLOCKS * PAGE, PAGE, PAGE) for n in range(3)]
    assert layout_of(spans_of(made)) == "layer"


def test_layers_that_share_a_tensor_share_a_span() -> None:
    made = config(spec())
    made.kv_cache_tensors[0].shared_by.append("other")
    made.kv_cache_groups.append(KVCacheGroupSpec(["other"], spec()))
    assert len(spans_of(made)) == 3


def test_packed_pages_of_a_block_lie_together_and_cover_the_region_once() -> None:
    apart = config(spec())
    together = packed(apart)
    assert allocations_of(together) == [(0, 3 * BLOCKS * PAGE)]
    assert spans_of(together) == [(0, n * PAGE, 3 * PAGE, PAGE) for n in range(3)]
    assert layout_of(spans_of(together)) == "block"
    assert allocations_of(apart) != allocations_of(together), "the scheduler's own stays as it was"
    driver = _C.host_driver()
    driver.probe()
    geometry = geometry_of(together, len(LAYERS), driver, 0)
    covered = sorted(
        (begin, end)
        for extent in range(geometry.num_extents)
        for _, begin, end in geometry.bytes_of(extent, 1)
    )
    assert covered[0][0] == 0
    assert covered[-1][1] == 3 * BLOCKS * PAGE
    assert all(one[1] == other[0] for one, other in itertools.pairwise(covered))


def test_only_what_finds_its_pages_by_the_stride_is_packed() -> None:
    assert can_pack(config(spec()))
    assert not can_pack(packed(config(spec())))
    assert not can_pack(config(spec(indexes_kv_by_block_stride=False)))
    assert not can_pack(config(spec(page_size_padded=2 * PAGE)))
