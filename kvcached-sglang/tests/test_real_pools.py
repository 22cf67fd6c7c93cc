"""SGLang's own pools and allocators, made under our hooks, without an engine around them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("sglang")
pytest.importorskip("sglang.srt.plugins", reason="this SGLang has no plugins")

from kvcached_sglang import NotElastic, allocators, attachment, pools

TOKENS = 4096

Build = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module", autouse=True)
def hooks() -> None:
    """As in a scheduler's process: SGLang loads plugins once its scheduler's code is there."""
    import sglang.srt.managers.scheduler  # noqa: F401
    from sglang.srt.plugins import load_plugins

    load_plugins()
    assert attachment.missing_hook() is None


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("KVCACHED_SHM_DIR", str(tmp_path))
    pools.settings.cache_clear()
    yield
    for memory in pools._memories:
        memory.pager.stop()
    pools._memories.clear()
    pools.settings.cache_clear()


def mha(**options: Any) -> Any:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    shape = {"head_num": 2, "head_dim": 16, "layer_num": 2, "dtype": torch.float16, "page_size": 1}
    chosen = {**shape, **options}
    return MHATokenToKVPool(TOKENS, device="cpu", enable_memory_saver=False, **chosen)


def mla(**options: Any) -> Any:
    from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

    shape = {"kv_lora_rank": 64, "qk_rope_head_dim": 16, "layer_num": 2, "page_size": 1}
    chosen = {**shape, "dtype": torch.float16, **options}
    return MLATokenToKVPool(TOKENS, device="cpu", enable_memory_saver=False, **chosen)


def build(pool: Callable[..., Any], page_size: int = 1, **options: Any) -> SimpleNamespace:
    """What SGLang's ``_init_pools()`` would have made, under our hook around it."""
    from sglang.srt.mem_cache.allocator import (
        PagedTokenToKVPoolAllocator,
        TokenToKVPoolAllocator,
    )

    builder = SimpleNamespace(
        is_draft_worker=False,
        is_hybrid_swa=False,
        gpu_id=0,
        mambaish_config=None,
        server_args=SimpleNamespace(tp_size=1, random_seed=1, disaggregation_mode="null"),
        model_config=SimpleNamespace(context_len=1000),
    )

    def init_pools(self: Any) -> None:
        self.pool = pool(page_size=page_size, **options)
        common = {"dtype": torch.float16, "device": "cpu", "kvcache": self.pool, "need_sort": False}
        self.token_to_kv_pool_allocator = (
            TokenToKVPoolAllocator(TOKENS, **common)
            if page_size == 1
            else PagedTokenToKVPoolAllocator(TOKENS, page_size=page_size, **common)
        )

    pools.init_pools(init_pools, builder)
    return builder


KINDS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (mha, {}),
    (mha, {"v_head_dim": 8}),
    (mha, {"dtype": torch.float8_e4m3fn}),
    (mla, {}),
    (mla, {"dtype": torch.bfloat16}),
]


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_pools_of_all_covered_kinds_hold_what_is_written(
    kind: Callable[..., Any], options: dict[str, Any], page_size: int
) -> None:
    made = build(kind, page_size, **options)
    allocator = made.token_to_kv_pool_allocator
    assert allocators.supply_of(allocator) is not None
    planes = [
        plane.flatten(1).view(torch.uint8)
        for name in ("k_buffer", "v_buffer", "kv_buffer")
        for plane in getattr(made.pool, name, None) or ()
    ]
    ids = allocator.alloc(TOKENS)
    for number, plane in enumerate(planes):
        plane[ids] = number + 1
    assert all(bool((plane[ids] == n + 1).all()) for n, plane in enumerate(planes))


@pytest.mark.parametrize("page_size", [1, 16])
def test_all_that_is_allocated_comes_back(page_size: int) -> None:
    allocator = build(mha, page_size).token_to_kv_pool_allocator
    supply = allocators.supply_of(allocator)
    assert supply is not None
    assert allocator.available_size() == TOKENS
    first, second = allocator.alloc(320), allocator.alloc(640)
    assert allocator.available_size() == TOKENS - 960
    assert not set(first.tolist()) & set(second.tolist())
    allocator.free(first)
    allocator.free_group_begin()
    allocator.free(second[:320])
    allocator.free(second[320:])
    assert allocator.available_size() == TOKENS - 640
    allocator.free_group_end()
    assert allocator.available_size() == TOKENS
    assert supply.used == 0


def hybrid(page_size: int = 1, **options: Any) -> SimpleNamespace:
    """What SGLang's ``_init_pools()`` would have made for layers of full attention and of windows:
    the latter's pool is half as large."""
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    try:
        from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
    except ImportError:  # before 0.5.14
        from sglang.srt.mem_cache.swa_memory_pool import SWATokenToKVPoolAllocator
    builder = SimpleNamespace(
        is_draft_worker=False,
        is_hybrid_swa=True,
        gpu_id=0,
        mambaish_config=None,
        server_args=SimpleNamespace(tp_size=1, random_seed=1, disaggregation_mode="null"),
        model_config=SimpleNamespace(context_len=1000),
    )
    shape = {"head_num": 2, "head_dim": 16, "dtype": torch.float16, "page_size": page_size}
    if "enable_kvcache_transpose" in inspect.signature(SWAKVPool).parameters:  # until 0.5.17
        shape["enable_kvcache_transpose"] = False

    def init_pools(self: Any) -> None:
        self.pool = SWAKVPool(
            TOKENS,
            TOKENS // 2,
            swa_attention_layer_ids=[0, 2],
            full_attention_layer_ids=[1],
            device="cpu",
            **{**shape, **options},
        )
        self.token_to_kv_pool_allocator = SWATokenToKVPoolAllocator(
            TOKENS,
            TOKENS // 2,
            page_size=page_size,
            dtype=torch.float16,
            device="cpu",
            kvcache=self.pool,
            need_sort=False,
        )

    pools.init_pools(init_pools, builder)
    return builder


@pytest.mark.parametrize("page_size", [1, 16])
def test_both_parts_of_a_hybrid_pool_are_elastic_each_for_itself(page_size: int) -> None:
    made = hybrid(page_size)
    allocator = made.token_to_kv_pool_allocator
    full, window = allocators.supplies_of(allocator)
    assert {memory.place.row for memory in pools.memories_of_this_process()} == {0, 1}
    assert allocator.full_available_size() == TOKENS
    assert allocator.swa_available_size() == TOKENS // 2
    if page_size == 1:
        ids = allocator.alloc(992)
    else:
        if not hasattr(allocator.full_attn_allocator, "use_triton_kernels"):
            pytest.skip("this SGLang fills pages with Triton alone")
        nothing, all_of_it = torch.tensor([0]), torch.tensor([992])
        ids = allocator.alloc_extend(
            nothing, nothing, all_of_it, all_of_it, torch.tensor([-1]), 992
        )
    taken = ids.numel()
    of_window = allocator.full_to_swa_index_mapping[ids]
    made.pool.full_kv_pool.k_buffer[0][ids] = 1
    made.pool.swa_kv_pool.k_buffer[1][of_window] = 2
    assert bool((made.pool.full_kv_pool.k_buffer[0][ids] == 1).all())
    assert full.used == window.used == taken // page_size
    # What lies behind a window goes first.
    allocator.free_swa(ids[: taken // 2])
    assert (full.used, window.used) == (taken // page_size, taken // 2 // page_size)
    # Before 0.5.23 free() leaves out what has no slot there any more.
    getattr(allocator, "free_full", allocator.free)(ids[: taken // 2])
    allocator.free(ids[taken // 2 :])
    assert full.used == window.used == 0
    assert allocator.full_available_size() == TOKENS
    assert allocator.swa_available_size() == TOKENS // 2


def test_a_rank_that_sees_less_of_one_part_takes_none_of_either() -> None:
    allocator = hybrid().token_to_kv_pool_allocator
    full, window = allocators.supplies_of(allocator)
    window.grant(10)
    assert allocator.alloc(11) is None
    assert full.used == window.used == 0


def test_a_hybrid_pool_of_another_kind_is_vanilla_in_both_parts() -> None:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    class Other(MHATokenToKVPool):  # type: ignore[misc]
        """A pool that reaches its memory in its own way, for all we know."""

    allocator = hybrid(token_to_kv_pool_class=Other).token_to_kv_pool_allocator
    assert allocators.supplies_of(allocator) == []
    assert allocator.alloc(TOKENS // 2) is not None


def test_what_a_rank_is_given_is_shared_by_both_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHED_FLOOR", str(1 << 19))
    monkeypatch.setenv("KVCACHED_WEIGHT", "3")
    hybrid()
    ledger = pools.memories_of_this_process()[0].ledger()
    terms = [(lease["floor_bytes"], lease["weight"]) for lease in ledger["leases"]]
    assert terms == [(1 << 18, 1.5)] * 2


def test_pages_grow_with_their_requests() -> None:
    allocator = build(mha, 16).token_to_kv_pool_allocator
    if not hasattr(allocator, "use_triton_kernels"):
        pytest.skip("this SGLang fills pages with Triton alone")
    before, after = torch.tensor([0, 0]), torch.tensor([20, 16])
    ids = allocator.alloc_extend(before, before, after, after, torch.tensor([-1, -1]), 36)
    assert len(set(ids.tolist())) == 36
    assert allocator.available_size() == TOKENS - 3 * 16
    last, longer = torch.tensor([ids[19], ids[35]]), torch.tensor([21, 17])
    new = allocator.alloc_decode(longer, longer, last)
    assert new[0] == ids[19] + 1
    assert allocator.available_size() == TOKENS - 4 * 16


def test_clearing_an_allocator_makes_all_of_it_available() -> None:
    allocator = build(mha).token_to_kv_pool_allocator
    allocator.alloc(3000)
    allocator.clear()
    assert allocator.available_size() == TOKENS
    assert allocator.alloc(TOKENS) is not None


def test_more_than_there_is_is_none_and_takes_nothing() -> None:
    allocator = build(mha).token_to_kv_pool_allocator
    assert allocator.alloc(TOKENS + 1) is None
    assert allocator.available_size() == TOKENS


def test_a_kind_that_is_not_covered_is_vanilla_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    class Other(MHATokenToKVPool):  # type: ignore[misc]
        """A pool that reaches its memory in its own way, for all we know."""

    monkeypatch.setattr("kvcached_sglang._said", set())

    def other(**options: Any) -> Any:
        shape = {"head_num": 2, "head_dim": 16, "layer_num": 2, "dtype": torch.float16}
        return Other(TOKENS, device="cpu", enable_memory_saver=False, **shape, **options)

    with caplog.at_level(logging.WARNING):
        allocator = build(other).token_to_kv_pool_allocator
    assert allocators.supply_of(allocator) is None
    assert "vanilla: KV pools of kind Other are not covered" in caplog.text
    assert allocator.alloc(TOKENS) is not None


def test_required_refuses_a_kind_that_is_not_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHED_REQUIRED", "true")
    monkeypatch.setenv("SGLANG_ENABLE_POST_CAPTURE_KV_SIZING", "1")
    with pytest.raises(NotElastic, match="KVCACHED_REQUIRED=true, but: SGLang's own sizing"):
        build(mha)


def test_two_pools_for_one_model_stop_the_engine() -> None:
    def twice(**options: Any) -> Any:
        mha(**options)
        return mha(**options)

    with pytest.raises(NotElastic, match="more KV pools for this model than expected"):
        build(twice)


def test_a_hook_that_sglang_did_not_apply_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(attachment._registered))
    monkeypatch.setitem(attachment._registered, name, attachment.found(name))
    reason = attachment.missing_hook()
    assert reason is not None
    assert name in reason
