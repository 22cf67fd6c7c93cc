"""Caches in which all keys of a layer lie before all of its values, as vLLM up to 0.22 has them."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

from kvcached import _C
from kvcached_vllm import engine
from kvcached_vllm.kv_layout import aligned_bytes, geometry_of, layout_of
from kvcached_vllm.kv_placement import parts_of_page, region_bytes, spans_of

LAYERS = [f"layers.{number}.attn" for number in range(3)]
SPEC = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.float32)
PAGE = SPEC.page_size_bytes
HALF = PAGE // 2
BLOCKS = 96


@pytest.fixture(autouse=True)
def before_0_23(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever vLLM is installed, tensors are described as they were then."""
    monkeypatch.setattr(engine, "describes_one_buffer", lambda: False)
    monkeypatch.setattr(engine, "packs_blocks", lambda: False)


@pytest.fixture
def driver() -> _C.Driver:
    made = _C.host_driver()
    made.probe()
    return made


def config(blocks: int = BLOCKS) -> Any:
    """Layers with a tensor each."""
    tensors = [SimpleNamespace(size=blocks * PAGE, shared_by=[layer]) for layer in LAYERS]
    group = SimpleNamespace(layer_names=LAYERS, kv_cache_spec=SPEC)
    return SimpleNamespace(num_blocks=blocks, kv_cache_tensors=tensors, kv_cache_groups=[group])


def attention(*outermost: str) -> Any:
    """A backend with these outermost dimensions."""

    def shape(num_blocks: int, block_size: int, num_kv_heads: int, head_size: int) -> Any:
        names = {"blocks": num_blocks, "both": 2, "tokens": block_size}
        return (*(names[name] for name in outermost), num_kv_heads, block_size, head_size)

    return SimpleNamespace(get_kv_cache_shape=shape)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """parts_of_page() of a model whose layers have these backends in turn."""

    def ask(*backends: Any) -> int | None:
        turns = dict(zip(LAYERS, itertools.cycle(backends), strict=False))
        monkeypatch.setattr(engine, "attention_of", lambda config, layers: turns)
        window = SlidingWindowSpec(
            block_size=16, num_kv_heads=2, head_size=64, dtype=torch.float32, sliding_window=64
        )
        specs = {LAYERS[0]: window, LAYERS[1]: SPEC, LAYERS[2]: SPEC}
        return parts_of_page(SimpleNamespace(), specs)  # type: ignore[arg-type]

    return ask


def test_a_model_without_a_cache_is_none_of_its_business() -> None:
    # Why it stays vanilla is said elsewhere: it has no KV cache.
    assert parts_of_page(SimpleNamespace(), {}) == 1  # type: ignore[arg-type]


def test_the_shape_of_a_cache_tells_where_keys_and_values_lie(parts: Any) -> None:
    assert parts(attention("blocks", "both")) == 1
    assert parts(attention("blocks")) == 1
    assert parts(attention("both", "blocks")) == 2


def test_what_is_neither_or_differs_by_layer_is_not_guessed(parts: Any) -> None:
    assert parts(attention("tokens", "blocks")) is None
    assert parts(attention("both", "tokens", "blocks")) is None
    assert parts(attention("both", "blocks"), attention("blocks", "both")) is None


def test_one_buffer_tells_it_by_strides(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "describes_one_buffer", lambda: True)
    assert parts(attention("both", "blocks")) == 1


def test_keys_and_values_of_a_layer_are_spans_of_their_own() -> None:
    spans = spans_of(config(), 2)
    halves = [half * BLOCKS * HALF for half in range(2 * len(LAYERS))]
    assert spans == [(0, offset, HALF, HALF) for offset in halves]
    assert layout_of(spans) == "layer"


def test_an_extent_has_the_same_blocks_of_both_and_extents_cover_every_byte_once(
    driver: _C.Driver,
) -> None:
    made = config()
    geometry = geometry_of(made, len(LAYERS), driver, 0, parts=2)
    for extent in range(geometry.num_extents):
        first = extent * geometry.blocks_per_extent
        begins = [begin for _, begin, _ in geometry.bytes_of(extent, 1)]
        assert begins == [offset + first * HALF for _, offset, _, _ in spans_of(made, 2)]
    covered = sorted(
        (begin, end)
        for extent in range(geometry.num_extents)
        for _, begin, end in geometry.bytes_of(extent, 1)
    )
    assert covered[0][0] == 0
    assert covered[-1][1] == region_bytes(made) == len(LAYERS) * BLOCKS * PAGE
    assert all(left[1] == right[0] for left, right in itertools.pairwise(covered))


def test_both_halves_of_an_extent_are_granules_of_its_own(driver: _C.Driver) -> None:
    granule = driver.granularity
    geometry = geometry_of(config(), len(LAYERS), driver, 0, parts=2)
    assert geometry.blocks_per_extent == granule // HALF
    assert geometry.extent_bytes(granule) == 2 * len(LAYERS) * granule


@pytest.mark.parametrize("available", [7 << 20, (9 << 20) + 4097, 10**9 + 7])
def test_a_budget_is_lowered_so_that_no_half_shares_a_granule(
    available: int, driver: _C.Driver
) -> None:
    granule = driver.granularity
    lowered = aligned_bytes(dict.fromkeys(LAYERS, SPEC), available, granule, 2)
    blocks = lowered // PAGE // len(LAYERS)  # as vLLM counts them
    assert 0 <= available - lowered < len(LAYERS) * 2 * granule
    assert blocks > 0
    assert all(offset % granule == 0 for _, offset, _, _ in spans_of(config(blocks), 2))


def test_memory_behind_an_extent_is_of_its_keys_and_values_alone(
    driver: _C.Driver, tmp_path: Any
) -> None:
    made = config()
    geometry = geometry_of(made, len(LAYERS), driver, 0, parts=2)
    row = str(tmp_path / "keys.0.row")
    pager = _C.Pager(driver, geometry, row)
    pager.start()
    pool = _C.Pool([row], 0, 0)
    pool.begin_step(1)
    pool.ensure(2 * geometry.blocks_per_extent - 1, 5.0)
    region = torch.from_dlpack(pager.region(0, 1, 0))
    caches = [
        region.narrow(0, layer * BLOCKS * PAGE, BLOCKS * PAGE)
        .view(torch.float32)
        .view(2, BLOCKS, HALF // 4)
        for layer in range(len(LAYERS))
    ]
    last = 2 * geometry.blocks_per_extent - 1
    for number, cache in enumerate(caches):
        cache[:, last] = float(number + 1)
    assert [cache[:, last].sum().item() for cache in caches] == [
        (number + 1) * HALF / 4 * 2 for number in range(len(LAYERS))
    ]
    assert all(cache[:, :last].sum().item() == 0 for cache in caches)
    pager.stop()
