"""vLLM's own allocation over our memory, for every type of KV cache that an engine may have.

What a type changes is how many bytes a block takes and how vLLM reads them. A wrong size would be
an index out of bounds or somebody else's block; a wrong type would be refused by the kernels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
from vllm.v1.kv_cache_interface import FullAttentionSpec, get_kv_quant_mode
from vllm.v1.worker import utils

from kvcached import _C
from kvcached_vllm.allocation import RegionForZeros
from kvcached_vllm.kv_layout import config_reason, geometry_of
from kvcached_vllm.kv_placement import region_bytes

if not hasattr(utils, "allocate_kv_cache"):
    pytest.skip("this vLLM allocates in its model runner", allow_module_level=True)

LAYERS = [f"layers.{number}.attn" for number in range(4)]
CPU = torch.device("cpu")
HEAD = 64

#: vLLM's name of a type, what its attention reads, and the bytes of one head of K and V of a token.
TYPES = [
    ("float16", torch.float16, 2 * HEAD * 2),
    ("bfloat16", torch.bfloat16, 2 * HEAD * 2),
    ("fp8_e4m3", torch.uint8, 2 * HEAD),
    ("fp8_e5m2", torch.uint8, 2 * HEAD),
    ("fp8_inc", torch.float8_e4m3fn, 2 * HEAD),
    # With a float32 scale for each of K and V.
    ("fp8_per_token_head", torch.uint8, 2 * (HEAD + 4)),
    ("int8_per_token_head", torch.int8, 2 * (HEAD + 4)),
    ("int4_per_token_head", torch.uint8, 2 * (HEAD // 2 + 4)),
    # Half a byte a number, and an 8-bit scale for every sixteen.
    ("nvfp4", torch.uint8, 2 * (HEAD // 2 + HEAD // 16)),
]


def spec_of(name: str, dtype: torch.dtype) -> FullAttentionSpec:
    """A layer's specification, as vLLM's attention makes it."""
    packing: dict[str, Any] = {}
    if name == "nvfp4":
        # As FlashInferBackend.customize_spec says, which needs FlashInfer to be loaded.
        packing = {"num_head_slots": 4, "state_content_bytes": HEAD // 2 + HEAD // 16}
    spec = FullAttentionSpec(
        block_size=16,
        num_kv_heads=2,
        head_size=HEAD,
        dtype=dtype,
        kv_quant_mode=get_kv_quant_mode(name),
        **packing,
    )
    return TritonAttentionBackend.customize_spec(spec)


@pytest.mark.parametrize("layout", ["LBHNC", "BLHNC"])
@pytest.mark.parametrize(("name", "dtype", "head_bytes"), TYPES)
def test_every_block_of_every_type_lies_in_its_own_memory_and_has_vllms_type(
    settled_config: Any, tmp_path: Path, name: str, dtype: torch.dtype, head_bytes: int, layout: str
) -> None:
    spec = spec_of(name, dtype)
    assert spec.page_size_bytes == 16 * 2 * head_bytes
    cache = settled_config.cache_config
    before = cache.kv_cache_layout
    cache.kv_cache_layout = layout
    try:
        (config,) = get_kv_cache_configs(settled_config, [dict.fromkeys(LAYERS, spec)], [2 << 20])
        resolved = cache.get_resolved_kv_cache_layout()
    finally:
        cache.kv_cache_layout = before
    assert config_reason(config, "cpu") is None

    driver = _C.host_driver()
    driver.probe()
    geometry = geometry_of(config, len(LAYERS), driver, 0)
    path = str(tmp_path / "types.0.row")
    pager = _C.Pager(driver, geometry, path)
    pager.start()
    try:
        pool = _C.Pool([path], 0, 0)
        last = config.num_blocks - 1
        assert pool.ensure(last, 10.0)
        region = torch.from_dlpack(pager.region(0))
        with RegionForZeros([(region_bytes(config), lambda: region)], CPU) as mode:
            views = utils.allocate_kv_cache(config, CPU, resolved)
        assert mode.unused == []

        touched = torch.zeros(region.numel(), dtype=torch.int32)
        for layer in LAYERS:
            view = views[layer]
            assert view.dtype == dtype
            assert view.shape[0] == config.num_blocks
            # The last block: its bytes are its extent's, and nobody else's.
            raw = view.view(torch.uint8)
            raw[last] = 0x3F
            written = region == 0x3F
            assert int(written.sum()) == spec.page_size_bytes
            touched += written
            raw[last] = 0
        inside = torch.zeros(region.numel(), dtype=torch.bool)
        for _, begin, end in geometry.bytes_of(last // geometry.blocks_per_extent, 1):
            inside[begin:end] = True
        assert int(touched.max()) == 1, "two layers share bytes of a block"
        assert not bool((touched.bool() & ~inside).any()), "a block reaches out of its extent"
    finally:
        pager.stop()
