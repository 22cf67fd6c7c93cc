"""Scales that vLLM's attention keeps in the cache: its own code makes its views over memory that is
not there, which whoever touched it would not survive."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_cache_types import HEAD, LAYERS, spec_of
from vllm.v1.attention.backends.triton_attn import TritonAttentionImpl
from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
from vllm.v1.worker import utils

from kvcached import _C
from kvcached_vllm import engine, scales
from kvcached_vllm.allocation import RegionForZeros
from kvcached_vllm.kv_layout import geometry_of
from kvcached_vllm.kv_placement import region_bytes

if not (hasattr(utils, "allocate_kv_cache") and hasattr(TritonAttentionImpl, engine.MAKES_SCALES)):
    pytest.skip("this vLLM allocates, or scales, in another way", allow_module_level=True)

#: As spec_of() has them.
HEADS, TOKENS = 2, 16
TYPES = [
    ("fp8_per_token_head", torch.uint8),
    ("int8_per_token_head", torch.int8),
    ("int4_per_token_head", torch.uint8),
]


def model_of(*layers: Any) -> Any:
    """A configuration with these layers."""
    named = dict(zip(LAYERS, layers, strict=False))
    return SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context=named))


def attention(name: str, cache: torch.Tensor) -> Any:
    """A layer with vLLM's attention over a cache of this type."""
    impl = TritonAttentionImpl(2 * HEADS, HEAD, 1.0, HEADS, None, None, kv_cache_dtype=name)
    return SimpleNamespace(impl=impl, kv_cache=cache)


@pytest.mark.parametrize(("name", "dtype"), TYPES)
def test_vllms_views_are_made_and_memory_that_is_not_there_is_not_touched(
    settled_config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: torch.dtype,
) -> None:
    spec = spec_of(name, dtype)
    monkeypatch.setattr(settled_config.cache_config, "kv_cache_layout", "LBHNC")
    (config,) = get_kv_cache_configs(settled_config, [dict.fromkeys(LAYERS, spec)], [8 << 20])
    driver = _C.host_driver()
    driver.probe()
    geometry = geometry_of(config, len(LAYERS), driver, 0)
    path = str(tmp_path / "scales.0.row")
    pager = _C.Pager(driver, geometry, path)
    pager.start()
    try:
        region = torch.from_dlpack(pager.region(0))
        with RegionForZeros([(region_bytes(config), lambda: region)], torch.device("cpu")):
            layout = settled_config.cache_config.get_resolved_kv_cache_layout()
            caches = utils.allocate_kv_cache(config, torch.device("cpu"), layout)
        layers = [attention(name, caches[layer]) for layer in LAYERS]
        model = model_of(*layers)
        assert scales.reason(model, dict.fromkeys(LAYERS, spec)) is None

        scales.make_views(model, region)

        views = [
            view
            for layer in layers
            for view in (layer.impl._k_scale_cache, layer.impl._v_scale_cache)
        ]
        assert {tuple(view.shape) for view in views} == {(config.num_blocks, TOKENS, HEADS)}
        # Each slot of the null block, which has memory, is one's own; written to by nobody so far.
        assert not any(view[0].any() for view in views)
        for number, view in enumerate(views):
            view[0] = number + 1
        assert [view[0].unique().item() for view in views] == [*range(1, len(views) + 1)]
        # vLLM finds them when it first runs, and asks for no other.
        layers[0].impl._ensure_scale_caches(caches[LAYERS[0]])
        assert layers[0].impl._k_scale_cache is views[0]
    finally:
        pager.stop()


def test_other_tensors_are_filled_as_ever() -> None:
    region, other = torch.zeros(8), torch.zeros(8)
    with scales._Untouched(region):
        assert region[2:].fill_(1.0).sum() == 0
        assert other.fill_(1.0).sum() == 8


def test_an_attention_that_makes_its_scales_in_another_way_is_not_covered() -> None:
    spec = spec_of(*TYPES[0])
    assert "scales" in str(
        scales.reason(model_of(SimpleNamespace(impl=object())), {LAYERS[0]: spec})
    )
    plain = spec_of("float16", torch.float16)
    assert scales.reason(model_of(SimpleNamespace(impl=object())), {LAYERS[0]: plain}) is None
