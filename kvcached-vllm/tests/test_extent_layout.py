"""The layout in which an extent's pages of one layer lie together, over vLLM's own objects."""

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
from kvcached_vllm.extent_layout import BlockIds, by_extent, fits, least_extent_bytes
from kvcached_vllm.kv_layout import geometry_of
from kvcached_vllm.kv_placement import packed

BLOCKS_PER_EXTENT = 8
BLOCKS = 64
LAYERS = [f"layers.{number}.attn" for number in range(3)]


@pytest.mark.parametrize("layers", [1, 3, 28])
def test_every_block_has_an_id_and_no_other_id_is_a_block(layers: int) -> None:
    ids = BlockIds(BLOCKS_PER_EXTENT, layers)
    known = [ids.id_of(block) for block in range(BLOCKS)]
    assert known[0] == 0, "the null block"
    assert known == sorted(set(known))
    every = torch.arange(-1, known[-1] + 1, dtype=torch.int32)
    blocks = ids.block_of(every).tolist()
    assert [block for block in blocks if block >= 0] == list(range(BLOCKS))
    assert blocks == [ids.block_of(block_id) for block_id in every.tolist()]


def test_without_other_layers_an_id_is_the_blocks_number() -> None:
    assert [BlockIds(4).id_of(block) for block in range(9)] == list(range(9))


earlier = pytest.mark.skipif(engine.describes_one_buffer(), reason="this vLLM describes one buffer")


def spec() -> FullAttentionSpec:
    made = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
    return dataclasses.replace(made, indexes_kv_by_block_stride=True)


def config(blocks: int = BLOCKS) -> KVCacheConfig:
    page = spec().page_size_bytes
    tensors = [KVCacheTensor(size=blocks * page, shared_by=[layer]) for layer in LAYERS]
    return KVCacheConfig(blocks, tensors, [KVCacheGroupSpec(LAYERS, spec())])


@earlier
def test_every_page_as_vllm_sees_it_lies_in_its_blocks_extent_and_nobody_elses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend
    from vllm.v1.worker.gpu.attn_utils import _reshape_attention_kv_cache

    monkeypatch.setenv("VLLM_KV_CACHE_LAYOUT", "NHD")
    apart = config()
    driver = _C.host_driver()
    driver.probe()
    # Extents of eight pages of the host's granule a layer.
    geometry = geometry_of(packed(apart), len(LAYERS), driver, 0)
    size = geometry.blocks_per_extent
    assert fits(apart, size)
    shown, slices = by_extent(apart, size)
    ids = BlockIds(size, len(LAYERS))
    assert shown.num_blocks == ids.id_of(BLOCKS - 1) + 1
    assert apart.num_blocks == BLOCKS, "the scheduler's own stays as it was"
    region = torch.zeros(BLOCKS * len(LAYERS) * spec().page_size_bytes, dtype=torch.int8)
    for tensor, (at, length) in zip(shown.kv_cache_tensors, slices, strict=True):
        assert tensor.size == length
        shape = FlashAttentionBackend.get_kv_cache_shape(shown.num_blocks, 16, 2, 64)
        order = FlashAttentionBackend.get_kv_cache_stride_order()
        layer = _reshape_attention_kv_cache(
            region.narrow(0, at, length), spec(), shape, order, shown.num_blocks, None
        )
        for block in range(BLOCKS):
            page = layer[ids.id_of(block)]
            assert not page.any(), "another page lies here"
            page.fill_(block + 1)
    values = region.view(torch.bfloat16)
    for extent in range(geometry.num_extents):
        ((_, begin, end),) = geometry.bytes_of(extent, 1)
        first = extent * size
        found = set(values[begin // 2 : end // 2].tolist())
        assert found == {float(block + 1) for block in range(first, first + size)}


@earlier
def test_an_extents_pages_of_a_layer_are_neighbours() -> None:
    shown, slices = by_extent(config(), BLOCKS_PER_EXTENT)
    page = spec().page_size_bytes
    ids = BlockIds(BLOCKS_PER_EXTENT, len(LAYERS))
    for at, _ in slices:
        places = [at + ids.id_of(block) * page for block in range(BLOCKS_PER_EXTENT)]
        assert all(two - one == page for one, two in itertools.pairwise(places))
    assert slices[-1][0] + slices[-1][1] == BLOCKS * len(LAYERS) * page
    assert [tensor.shared_by for tensor in shown.kv_cache_tensors] == [[name] for name in LAYERS]


@earlier
def test_pages_of_several_sizes_and_short_extents_do_not_fit() -> None:
    assert fits(config(), BLOCKS_PER_EXTENT)
    assert not fits(config(BLOCKS - 1), BLOCKS_PER_EXTENT)
    uneven = config()
    uneven.kv_cache_tensors[0].size *= 2
    assert not fits(uneven, BLOCKS_PER_EXTENT)


@earlier
def test_extents_are_no_larger_than_that_for_models_of_many_layers() -> None:
    few, many = config(), config()
    many.kv_cache_tensors = many.kv_cache_tensors * 100
    assert least_extent_bytes(few) == 3 * (512 << 10)
    assert least_extent_bytes(many) == 32 << 20
