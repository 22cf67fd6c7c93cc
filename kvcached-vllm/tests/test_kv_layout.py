"""How vLLM's KV cache configurations become bytes and extents, over vLLM's own objects."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    KVCacheTensor,
    MambaSpec,
    MLAAttentionSpec,
    SinkFullAttentionSpec,
    SlidingWindowSpec,
)

from kvcached import _C
from kvcached_vllm.kv_layout import (
    aligned_bytes,
    config_reason,
    geometry_of,
    kind_reason,
    layers_of_stages,
    layout_of,
)
from kvcached_vllm.kv_placement import spans_of

LAYERS = [f"layers.{number}.attn" for number in range(4)]
SPEC = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.float32)
PAGE = SPEC.page_size_bytes
BLOCKS = 100


def config_of(
    tensors: list[KVCacheTensor], spec: KVCacheSpec = SPEC, layers: list[str] = LAYERS
) -> KVCacheConfig:
    return KVCacheConfig(BLOCKS, tensors, [KVCacheGroupSpec(layers, spec)])


def layers_apart() -> KVCacheConfig:
    return config_of(
        [
            KVCacheTensor(
                size=len(LAYERS) * BLOCKS * PAGE,
                layers=LAYERS,
                layer_stride=BLOCKS * PAGE,
                block_stride=PAGE,
            )
        ]
    )


def block_outermost() -> KVCacheConfig:
    return config_of(
        [
            KVCacheTensor(
                size=len(LAYERS) * BLOCKS * PAGE,
                layers=LAYERS,
                layer_stride=PAGE,
                block_stride=len(LAYERS) * PAGE,
            )
        ]
    )


@pytest.fixture
def driver() -> _C.Driver:
    made = _C.host_driver()
    made.probe()
    return made


def test_layers_apart_are_a_span_each() -> None:
    spans = spans_of(layers_apart())
    assert spans == [(0, layer * BLOCKS * PAGE, PAGE, PAGE) for layer in range(4)]
    assert layout_of(spans) == "layer"


def test_layers_of_a_block_together_are_interleaved_spans() -> None:
    spans = spans_of(block_outermost())
    assert spans == [(0, layer * PAGE, 4 * PAGE, PAGE) for layer in range(4)]
    assert layout_of(spans) == "block"


def test_one_layer_alone_is_the_layer_layout() -> None:
    assert layout_of([(0, 0, PAGE, PAGE)]) == "layer"


def test_layers_that_share_bytes_appear_once() -> None:
    tensor = layers_apart().kv_cache_tensors[0]
    other = KVCacheTensor(
        size=tensor.size, layers=["mtp"], layer_stride=PAGE, block_stride=PAGE, offset=0
    )
    config = config_of([tensor, other], layers=[*LAYERS, "mtp"])
    assert spans_of(config) == spans_of(layers_apart())


def test_an_offset_moves_all_layers_of_a_tensor() -> None:
    config = block_outermost()
    config.kv_cache_tensors[0].offset = 64
    assert [offset for _, offset, _, _ in spans_of(config)] == [64 + n * PAGE for n in range(4)]


@pytest.mark.parametrize("config", [layers_apart(), block_outermost()], ids=["layer", "block"])
def test_the_extents_cover_every_byte_once(config: KVCacheConfig, driver: _C.Driver) -> None:
    geometry = geometry_of(config, len(LAYERS), driver, 0)
    size = config.kv_cache_tensors[0].size
    covered = sorted(
        (begin, end)
        for extent in range(geometry.num_extents)
        for _, begin, end in geometry.bytes_of(extent, 1)
    )
    assert geometry.num_blocks == BLOCKS
    assert covered[0][0] == 0
    assert covered[-1][1] == size
    assert all(left[1] == right[0] for left, right in itertools.pairwise(covered))


def test_a_block_of_all_layers_makes_a_smaller_extent(driver: _C.Driver) -> None:
    apart = geometry_of(layers_apart(), 4, driver, 0)
    together = geometry_of(block_outermost(), 4, driver, 0)
    granule = driver.granularity
    assert apart.extent_bytes(granule) == 4 * granule
    assert together.extent_bytes(granule) == granule


def test_a_wanted_part_size_is_kept(driver: _C.Driver) -> None:
    geometry = geometry_of(layers_apart(), 4, driver, 2 << 20)
    assert geometry.blocks_per_extent * PAGE >= min(2 << 20, BLOCKS * PAGE)


@pytest.mark.parametrize("max_mappings", [0, 100, 400])
def test_ranks_with_different_shares_of_the_layers_choose_the_same_extents(
    max_mappings: int,
) -> None:
    driver: Any = SimpleNamespace(granularity=64 << 10, max_mappings=max_mappings)
    few = config_of(
        [
            KVCacheTensor(
                size=BLOCKS * PAGE, layers=LAYERS[:1], layer_stride=BLOCKS * PAGE, block_stride=PAGE
            )
        ],
        layers=LAYERS[:1],
    )
    first = geometry_of(few, 4, driver, 0)
    second = geometry_of(layers_apart(), 4, driver, 0)
    assert first.blocks_per_extent == second.blocks_per_extent


def together(layers: int) -> KVCacheConfig:
    """Blocks of so many layers, side by side, in one buffer."""
    names = [f"layers.{number}.attn" for number in range(layers)]
    tensor = KVCacheTensor(
        size=layers * BLOCKS * PAGE, layers=names, layer_stride=PAGE, block_stride=layers * PAGE
    )
    return config_of([tensor], layers=names)


@pytest.mark.parametrize("layers", [5, 13, 29])
def test_pipeline_stages_of_unlike_length_choose_the_same_extents(layers: int) -> None:
    driver: Any = SimpleNamespace(granularity=2 << 20, max_mappings=0)
    stages = layers_of_stages(layers, 2)
    assert len(set(stages)) == 2
    alone = {geometry_of(together(n), layers, driver, 0).blocks_per_extent for n in stages}
    assert len(alone) == 2, "or this shows nothing"
    agreed = {geometry_of(together(n), layers, driver, 0, stages).blocks_per_extent for n in stages}
    assert agreed == {max(agreed)}


def test_one_stage_has_no_other_to_agree_with() -> None:
    assert layers_of_stages(28, 1) == []


def test_few_mappings_make_larger_extents() -> None:
    def blocks(max_mappings: int) -> int:
        driver: Any = SimpleNamespace(granularity=64 << 10, max_mappings=max_mappings)
        return geometry_of(layers_apart(), 4, driver, 0).blocks_per_extent

    assert blocks(40) > blocks(0)


@pytest.mark.parametrize("layout", ["LBHNC", "BLHNC"])
def test_what_vllm_itself_lays_out_is_understood(
    settled_config: Any, driver: _C.Driver, layout: str
) -> None:
    cache = settled_config.cache_config
    before = cache.kv_cache_layout
    cache.kv_cache_layout = layout
    try:
        (config,) = get_kv_cache_configs(settled_config, [dict.fromkeys(LAYERS, SPEC)], [8 << 20])
    finally:
        cache.kv_cache_layout = before
    assert config_reason(config, "cpu") is None
    spans = spans_of(config)
    assert layout_of(spans) == ("layer" if layout.startswith("L") else "block")
    geometry = geometry_of(config, len(LAYERS), driver, 0)
    assert geometry.num_blocks == config.num_blocks == (8 << 20) // (4 * PAGE)
    total = sum(
        end - begin
        for extent in range(geometry.num_extents)
        for _, begin, end in geometry.bytes_of(extent, 1)
    )
    assert total == config.kv_cache_tensors[0].size


LATENT = MLAAttentionSpec(block_size=16, num_kv_heads=1, head_size=576, dtype=torch.float32)
STATE = MambaSpec(block_size=16, shapes=((4, 4),), dtypes=(torch.float32,))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_full_and_window_attention_are_covered(device: str) -> None:
    window = SlidingWindowSpec(
        block_size=16, num_kv_heads=2, head_size=64, dtype=torch.float32, sliding_window=64
    )
    assert kind_reason([SPEC, window], device) is None
    assert config_reason(layers_apart(), device) is None


@pytest.mark.parametrize("spec", [LATENT, STATE], ids=["latents", "states"])
def test_other_kinds_are_covered_where_they_were_run(spec: KVCacheSpec) -> None:
    config = config_of(layers_apart().kv_cache_tensors, spec)
    reason = f"KV caches of kind {type(spec).__name__} are not covered"
    assert kind_reason([SPEC, spec], "cpu") is None
    assert config_reason(config, "cpu") is None
    assert kind_reason([SPEC, spec], "cuda") == config_reason(config, "cuda") == reason


def test_a_kind_that_only_resembles_a_covered_one_is_named() -> None:
    sinks = SinkFullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.float32)
    reason = kind_reason([SPEC, sinks], "cpu")
    assert reason == "KV caches of kind SinkFullAttentionSpec are not covered"


def test_states_are_covered_unless_every_block_keeps_one() -> None:
    reasons = {
        mode: kind_reason([dataclasses.replace(STATE, mamba_cache_mode=mode)], "cpu")
        for mode in ("none", "align", "all")
    }
    assert reasons == {
        "none": None,
        "align": None,
        "all": "--mamba-cache-mode all is not covered",
    }


def test_a_cache_in_host_memory_is_not_covered() -> None:
    config = layers_apart()
    config.kv_cache_tensors[0].host_resident = True
    assert config_reason(config, "cpu") == "KV caches in host memory are not covered"


def test_a_model_without_a_cache_is_not_covered() -> None:
    assert config_reason(config_of([]), "cpu") == "the model has no KV cache"


@pytest.mark.parametrize("available", [1, 12345, 8 << 20, (8 << 20) + 4097, 10**9 + 7])
def test_a_budget_is_lowered_so_that_layers_share_no_granule(
    available: int, driver: _C.Driver
) -> None:
    granule = driver.granularity
    aligned = aligned_bytes(dict.fromkeys(LAYERS, SPEC), available, granule)
    assert aligned <= available
    if available >= 16 * len(LAYERS) * granule:
        assert (aligned // len(LAYERS)) % granule == 0
        assert available - aligned < len(LAYERS) * granule
    else:
        assert aligned == available


def test_a_budget_of_unlike_layers_stays(driver: _C.Driver) -> None:
    wide = FullAttentionSpec(block_size=16, num_kv_heads=4, head_size=64, dtype=torch.float32)
    assert aligned_bytes({"a": SPEC, "b": wide}, 12345678, driver.granularity) == 12345678
