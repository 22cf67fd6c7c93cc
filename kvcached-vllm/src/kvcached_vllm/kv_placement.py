"""Where each layer's pages lie in vLLM's KV cache: what its KVCacheTensor says, by version.

vLLM 0.29 and later describe one backing buffer in which every layer has an offset and strides.
Before, each tensor is an allocation of its own, shared by one layer of every group; or, packed,
all are one allocation in which a block's pages lie together. Up to 0.22 most attention keeps all
keys of such a tensor before all values, so that a page is in two parts. Here all of them are spans
of one region, and the allocations are slices of it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.v1.kv_cache_interface import KVCacheTensor

from kvcached_vllm import engine

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

    from kvcached import _C

#: (region, offset, stride, bytes): a layer's page of block b, or a part of it, lies at offset +
#: b * stride.
Span = tuple[int, int, int, int]
#: (offset, bytes) of one allocation within the region.
Slice = tuple[int, int]

#: A number of blocks that no other dimension of a cache has.
_SOME_BLOCKS = 1_000_003


@dataclass(frozen=True)
class Placement:
    """One rank's cache: what vLLM is told of it, and what the pager is."""

    config: KVCacheConfig
    """vLLM's, with the layers' pages where `layout` has them."""
    geometry: _C.Geometry
    layout: str
    """The layout's name: "layer", "block" or "extent"."""
    slices: list[Slice]
    """What vLLM will allocate for `config`, in its order."""


def spec_of(config: KVCacheConfig, layer: str) -> KVCacheSpec:
    """A layer's own specification. Raises KeyError for a layer of no group."""
    for group in config.kv_cache_groups:
        if layer in group.layer_names:
            parts = engine.parts_of(group.kv_cache_spec)
            return group.kv_cache_spec if parts is None else parts[layer]
    raise KeyError(layer)


def parts_of_page(vllm_config: VllmConfig, specs: Mapping[str, KVCacheSpec]) -> int | None:
    """In how many parts a layer's page lies: 1, or 2 where all keys of a layer lie before all of
    its values. None where the layers' attention does not agree, or has it another way.

    To be asked once the model is loaded. `specs`: of full and windowed attention, by layer. Only
    the outermost dimensions tell; backends permute none but those behind them (0.22
    v1/attention/backends, get_kv_cache_stride_order()).
    """
    if engine.describes_one_buffer() or not specs:
        return 1
    found: set[int | None] = set()
    for layer, attention in engine.attention_of(vllm_config, specs).items():
        spec = specs[layer]
        outermost, inner, *_ = attention.get_kv_cache_shape(
            _SOME_BLOCKS, spec.block_size, spec.num_kv_heads, spec.head_size
        )
        if outermost == _SOME_BLOCKS:
            found.add(1)
        else:
            found.add(2 if (outermost, inner) == (2, _SOME_BLOCKS) else None)
    return found.pop() if len(found) == 1 else None


def spans_of(config: KVCacheConfig, parts: int = 1) -> list[Span]:
    """The spans of all layers in region 0; layers that share bytes appear once. `parts` is what
    parts_of_page() says."""
    return list(dict.fromkeys(_spans(config, parts)))


def _spans(config: KVCacheConfig, parts: int) -> Iterable[Span]:
    if engine.describes_one_buffer():
        for tensor in config.kv_cache_tensors:
            for index, layer in enumerate(tensor.layers):
                offset = tensor.offset + index * tensor.layer_stride
                yield 0, offset, tensor.block_stride, spec_of(config, layer).page_size_bytes
        return
    begin = 0
    for tensor in config.kv_cache_tensors:
        for layer in tensor.shared_by:
            page = spec_of(config, layer).page_size_bytes
            if _block_stride(tensor):
                yield 0, tensor.offset, tensor.block_stride, page
                continue
            for part in range(parts):
                yield 0, begin + part * tensor.size // parts, page // parts, page // parts
        begin += tensor.size


def allocations_of(config: KVCacheConfig) -> list[Slice]:
    """What vLLM will allocate for this configuration, in its order, as slices of the region."""
    tensors = config.kv_cache_tensors
    if engine.describes_one_buffer() or _packed(config):
        return [(0, tensors[0].size)]
    slices = []
    begin = 0
    for tensor in tensors:
        slices.append((begin, tensor.size))
        begin += tensor.size
    return slices


def region_bytes(config: KVCacheConfig) -> int:
    """The size of the region behind all allocations."""
    offset, size = allocations_of(config)[-1]
    return offset + size


def _packed(config: KVCacheConfig) -> bool:
    if engine.describes_one_buffer():
        return False
    return any(_block_stride(tensor) for tensor in config.kv_cache_tensors)


def _block_stride(tensor: KVCacheTensor) -> int:
    return tensor.block_stride if engine.packs_blocks() else 0


def can_pack(config: KVCacheConfig) -> bool:
    """Whether the layers of a block may be laid together where vLLM has them apart.

    In vLLM 0.24 to 0.28: before, no tensor can say so; from 0.29 on workers offer the layouts
    instead. Every layer must find its pages by
    the stride between blocks (FlashAttention, Triton and FlashInfer do), and vLLM must not zero
    blocks itself: it takes the stride for the page's size (0.26 v1/worker/utils.py,
    KVBlockZeroer).
    """
    if engine.describes_one_buffer() or not engine.packs_blocks():
        return False
    if _packed(config) or engine.zeroes_blocks(config):
        return False
    specs = [
        spec_of(config, layer) for tensor in config.kv_cache_tensors for layer in tensor.shared_by
    ]
    return all(
        getattr(spec, "indexes_kv_by_block_stride", False)
        and getattr(spec, "page_size_padded", None) is None
        and spec.storage_block_size == spec.block_size
        for spec in specs
    )


def packed(config: KVCacheConfig) -> KVCacheConfig:
    """A copy of a configuration in which all pages of a block lie together."""
    made = copy.copy(config)
    pages = [tensor.size // config.num_blocks for tensor in config.kv_cache_tensors]
    stride = sum(pages)
    offsets = [sum(pages[:index]) for index in range(len(pages))]
    made.kv_cache_tensors = [
        KVCacheTensor(
            size=stride * config.num_blocks,
            shared_by=tensor.shared_by,
            offset=offset,
            block_stride=stride,
        )
        for tensor, offset in zip(config.kv_cache_tensors, offsets, strict=True)
    ]
    return made
