"""How vLLM's KV cache configuration becomes regions, spans and extents."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vllm.distributed.utils import get_pp_indices
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, SlidingWindowSpec

from kvcached import _C
from kvcached_vllm import engine
from kvcached_vllm.kv_placement import Span, region_bytes, spans_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

#: Kinds of KV cache whose every block is reached through a block table, and which were run on GPUs.
_COVERED: tuple[type[KVCacheSpec], ...] = (FullAttentionSpec, SlidingWindowSpec)
#: Those that were run on CPUs (integration-tests/test_kinds.py), where one buffer is described. By
#: name: old versions do not have them.
_COVERED_ON_CPU = frozenset(
    ("MLAAttentionSpec", "MambaSpec", "ChunkedLocalAttentionSpec", "CrossAttentionSpec")
)


def _single_specs(specs: Iterable[KVCacheSpec]) -> Iterable[KVCacheSpec]:
    for spec in specs:
        parts = engine.parts_of(spec)
        yield from (spec,) if parts is None else parts.values()


def kind_reason(specs: Iterable[KVCacheSpec], device: str) -> str | None:
    """Why layers of these kinds cannot be elastic on a device ("cpu" or "cuda"), or None."""
    more = _COVERED_ON_CPU if device == "cpu" and engine.describes_one_buffer() else frozenset()
    for spec in _single_specs(specs):
        # Exactly these: a subclass may reach its memory in its own way.
        if type(spec) not in _COVERED and type(spec).__name__ not in more:
            return f"KV caches of kind {type(spec).__name__} are not covered"
        if (mode := getattr(spec, "mamba_cache_mode", "none")) not in ("none", "align"):
            return f"--mamba-cache-mode {mode} is not covered"
    return None


def config_reason(config: KVCacheConfig, device: str) -> str | None:
    """Why this cache cannot be elastic, or None. The same on every rank."""
    reason = kind_reason((group.kv_cache_spec for group in config.kv_cache_groups), device)
    if reason is not None:
        return reason
    if engine.zeroes_blocks(config) and device != "cpu":
        return "KV caches that vLLM zeroes block by block are not covered"
    if not config.kv_cache_tensors:
        return "the model has no KV cache"
    if any(getattr(tensor, "host_resident", False) for tensor in config.kv_cache_tensors):
        return "KV caches in host memory are not covered"
    return None


def layout_of(spans: list[Span]) -> str:
    """Either "block": a block's layers lie together, or "layer": each layer lies apart."""
    return "block" if any(stride > size for _, _, stride, size in spans) else "layer"


def longest_request_blocks(vllm_config: VllmConfig, config: KVCacheConfig) -> int:
    """Blocks that one request of the longest length takes, and the null block."""
    needed = 1
    for group in config.kv_cache_groups:
        spec = group.kv_cache_spec
        needed += math.ceil(spec.max_memory_usage_bytes(vllm_config) / spec.page_size_bytes)
    return needed


def geometry_of(
    config: KVCacheConfig,
    total_layers: int,
    driver: _C.Driver,
    min_part_bytes: int,
    stages: Sequence[int] = (),
    parts: int = 1,
) -> _C.Geometry:
    """The geometry of this rank's cache, whose pages lie in so many `parts`.

    Every rank must choose the same extents, whatever its share of the layers: the bound on
    mappings is therefore taken for `total_layers`, the whole model's, and where the layers of a
    block lie together, extents suit all of `stages`, the layers of every pipeline stage.
    """
    spans = spans_of(config, parts)
    whole = [spans[index % len(spans)] for index in range(max(parts * total_layers, len(spans)))]
    if layout_of(spans) == "layer":
        # Apart from each other, so that they count as parts of their own.
        stride = max(size for _, _, _, size in spans) * config.num_blocks
        whole = [
            (0, index * stride, block_stride, size)
            for index, (_, _, block_stride, size) in enumerate(whole)
        ]
    model = _C.Geometry(
        config.num_blocks,
        [max(offset + config.num_blocks * stride for _, offset, stride, _ in whole)],
        whole,
    )
    blocks = _C.choose_blocks_per_extent(
        model, driver.granularity, min_part_bytes, driver.max_mappings
    )
    if layout_of(spans) == "block" and len(spans) in stages:
        # The largest that one of them needs. It mostly is a power of two, and fits the others.
        blocks = max(
            _C.choose_blocks_per_extent(
                _together(config.num_blocks, spans[0][3], count),
                driver.granularity,
                min_part_bytes,
                driver.max_mappings,
            )
            for count in stages
        )
    return _C.Geometry(config.num_blocks, [region_bytes(config)], spans, blocks)


def _together(num_blocks: int, page: int, layers: int) -> _C.Geometry:
    """The cache of a rank that has so many layers, those of a block side by side."""
    spans = [(0, index * page, layers * page, page) for index in range(layers)]
    return _C.Geometry(num_blocks, [num_blocks * layers * page], spans)


def layers_of_stages(layers: int, stages: int) -> list[int]:
    """How many of a model's layers each pipeline stage has, as vLLM splits them."""
    if stages == 1 or layers < stages:
        return []
    edges = [get_pp_indices(layers, stage, stages) for stage in range(stages)]
    return [end - begin for begin, end in edges]


_LEAST_STEPS = 16


def aligned_bytes(
    specs: Mapping[str, KVCacheSpec], available: int, granule: int, parts: int = 1
) -> int:
    """`available` lowered so that every layer's part of the cache ends on a granule: where pages
    lie in several `parts`, each of them.

    Layers that share no granule cost nothing at their edges. Where that would cost more than a
    sixteenth, as with pages of odd sizes, the figure stays as it is, and granules are shared.
    """
    pages = {spec.page_size_bytes for spec in _single_specs(specs.values())}
    if len(pages) != 1:
        return available
    page = pages.pop()
    together = granule // math.gcd(page // parts, granule)
    step = page * len(specs) * together
    return available // step * step if available >= _LEAST_STEPS * step else available
