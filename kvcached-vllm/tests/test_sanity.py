"""KVCACHED_SANITY_CHECK over vLLM's own plans and a real page table."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from kvcached import _C
from kvcached_vllm.extent_layout import BlockIds
from kvcached_vllm.sanity import SanityError, StepCheck, check_owners

TOKENS = 16
NUM_BLOCKS = 62  # the last extent is short
BLOCKS_PER_EXTENT = 4
BLOCK_BYTES = 16 << 10

_SHAPE: dict[str, Any] = {"num_kv_heads": 1, "head_size": 64, "dtype": torch.float32}
FULL = FullAttentionSpec(block_size=TOKENS, **_SHAPE)
WINDOW = SlidingWindowSpec(block_size=TOKENS, sliding_window=2 * TOKENS, **_SHAPE)
CHUNKS = ChunkedLocalAttentionSpec(block_size=TOKENS, attention_chunk_size=2 * TOKENS, **_SHAPE)
STATES = MambaSpec(
    block_size=TOKENS, shapes=((4, 4),), dtypes=(torch.float32,), mamba_cache_mode="align"
)


class Rank:
    """One rank's pager and row, and the scheduler's pool behind them, without slack."""

    def __init__(self, path: Path, block_bytes: int = BLOCK_BYTES, layout: str = "layer") -> None:
        driver = _C.host_driver()
        driver.probe()
        geometry = _C.Geometry(
            NUM_BLOCKS,
            [NUM_BLOCKS * block_bytes],
            [(0, 0, block_bytes, block_bytes)],
            BLOCKS_PER_EXTENT,
        )
        self.pager = _C.Pager(driver, geometry, str(path), layout=layout, rank=3, sanity_check=True)
        self.pager.start()
        self.row = _C.Row.attach(str(path))
        self.pool = _C.Pool([str(path)], 0, 0)
        self.blocks = [KVCacheBlock(number) for number in range(NUM_BLOCKS)]
        self.queue = _C.BlockQueue(self.pool, self.blocks)
        self.queue.remove(self.blocks[0])

    def commit(self, extents: int) -> None:
        """Commits the lowest extents, the pinned one counted, and hands all of their blocks out."""
        needed = extents * BLOCKS_PER_EXTENT - 1
        assert self.pool.ensure(needed, 10.0)
        self.queue.popleft_n(needed)

    def check(self, *specs: KVCacheSpec) -> StepCheck:
        groups = [KVCacheGroupSpec(["layer"], spec) for spec in specs or (FULL,)]
        config = SimpleNamespace(kv_cache_groups=groups, kv_cache_tensors=[None] * 3)
        return StepCheck(self.pager, self.row, config)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.3.row"


@pytest.fixture
def rank(path: Path) -> Iterator[Rank]:
    made = Rank(path)
    made.commit(extents=3)  # blocks 0 to 11
    yield made
    made.pager.stop()
    del made
    gc.collect()


def begin(name: str, *groups: list[int], computed: int = 0) -> NewRequestData:
    return NewRequestData(
        req_id=name,
        prompt_token_ids=[1],
        mm_features=[],
        sampling_params=None,
        pooling_params=None,
        block_ids=groups,
        num_computed_tokens=computed,
        lora_request=None,
    )


def plan(
    *new: NewRequestData,
    further: dict[str, tuple[list[int], ...] | None] | None = None,
    computed: int = TOKENS,
    resumed: tuple[str, ...] = (),
    finished: tuple[str, ...] = (),
    preempted: tuple[str, ...] | None = None,
) -> SchedulerOutput:
    """A step with new requests, and `further` blocks of older ones."""
    made = SchedulerOutput.make_empty()
    made.scheduled_new_reqs = list(new)
    further = further or {}
    made.scheduled_cached_reqs = CachedRequestData(
        req_ids=list(further),
        resumed_req_ids=set(resumed),
        new_token_ids=[],
        all_token_ids={},
        new_block_ids=list(further.values()),
        num_computed_tokens=[computed] * len(further),
        num_output_tokens=[0] * len(further),
    )
    made.finished_req_ids = set(finished)
    made.preempted_req_ids = None if preempted is None else set(preempted)
    return made


def test_committed_blocks_pass(rank: Rank) -> None:
    check = rank.check()
    check.check(plan(begin("a", [1, 2, 11]), begin("b", [0, 5])), 1)
    check.check(plan(further={"a": ([3],), "b": None}), 2)


def test_a_plan_without_requests_passes(rank: Rank) -> None:
    rank.check().check(SchedulerOutput.make_empty(), 1)


def test_a_new_request_on_absent_memory_is_named_with_block_extent_state_rank_and_step(
    rank: Rank,
) -> None:
    with pytest.raises(SanityError) as caught:
        rank.check().check(plan(begin("fine", [1]), begin("stray", [2, 12, 61])), 17)
    assert str(caught.value) == (
        "kvcached: sanity check: step 17: rank 3: request 'stray' uses block 12 of extent 3, "
        "which is absent"
    )


def test_a_block_added_later_is_checked(rank: Rank) -> None:
    check = rank.check()
    check.check(plan(begin("a", [1])), 1)
    with pytest.raises(SanityError, match=r"step 2: .*'a' uses block 61 of extent 15"):
        check.check(plan(further={"a": ([61],)}), 2)


def test_blocks_of_earlier_plans_are_checked_again(rank: Rank) -> None:
    check = rank.check()
    rank.pool.begin_step(1)
    check.check(plan(begin("a", [8, 9])), 1)
    rank.queue.prepend_n(rank.blocks[8:12])
    rank.pager.launched(1)
    rank.pool.processed(1)
    rank.pool.balance(True)
    assert rank.row.state(2) in ("releasing", "absent")
    rank.pool.wait(10.0)
    assert rank.row.state(2) == "absent"
    with pytest.raises(SanityError, match=r"'a' uses block 8 of extent 2, which is absent"):
        check.check(plan(further={"a": None}), 2)


def test_a_step_planned_before_its_blocks_were_freed_passes_and_a_later_one_does_not(
    rank: Rank,
) -> None:
    check = rank.check()
    rank.pool.begin_step(5)
    # Freed in step 5, by an abort: step 5 is not launched, so the memory is still there.
    rank.queue.prepend_n(rank.blocks[8:12])
    rank.pool.balance(True)
    assert rank.row.state(2) == "releasing"
    assert rank.row.fence(2) == 5
    check.check(plan(begin("aborted", [8])), 5)
    with pytest.raises(SanityError, match=r"step 6: .*which is releasing"):
        check.check(plan(further={"aborted": None}), 6)


@pytest.mark.parametrize("block", [NUM_BLOCKS, -1, 2**31 - 1])
def test_a_block_that_does_not_exist_is_found(rank: Rank, block: int) -> None:
    with pytest.raises(SanityError, match=rf"'a' uses block {block}, and there are 62 blocks"):
        rank.check().check(plan(begin("a", [1, block])), 1)


def test_finished_requests_are_forgotten(rank: Rank) -> None:
    check = rank.check()
    check.check(plan(begin("a", [1])), 1)
    check.check(plan(finished=("a",)), 2)
    with pytest.raises(SanityError, match=r"'a' goes on, and no plan began it"):
        check.check(plan(further={"a": None}), 3)


def test_a_finished_request_may_come_again_under_its_name(rank: Rank) -> None:
    check = rank.check()
    check.check(plan(begin("a", [1])), 1)
    check.check(plan(begin("a", [2]), finished=("a",)), 2)
    check.check(plan(further={"a": ([3],)}), 3)


def test_a_resumed_request_has_the_blocks_of_its_new_plan_alone(rank: Rank) -> None:
    check = rank.check()
    check.check(plan(begin("a", [1, 2])), 1)
    with pytest.raises(SanityError, match="block 40"):
        check.check(plan(further={"a": ([40],)}), 2)
    check.check(plan(further={"a": ([5],)}, resumed=("a",)), 3)
    # The second model runner's plans begin it anew.
    check.check(plan(preempted=("a",)), 4)
    check.check(plan(begin("a", [6])), 5)


def test_requests_that_a_step_leaves_out_are_not_its_business(rank: Rank) -> None:
    check = rank.check()
    with pytest.raises(SanityError, match="'waits' uses block 40"):
        check.check(plan(begin("waits", [40])), 1)
    check.check(plan(begin("b", [1])), 2)


def test_every_group_is_checked(rank: Rank) -> None:
    check = rank.check(FULL, FULL)
    check.check(plan(begin("a", [1, 2], [3])), 1)
    with pytest.raises(SanityError, match="block 50"):
        check.check(plan(further={"a": ([4], [50])}), 2)


@pytest.mark.parametrize(
    "spec", [WINDOW, UniformTypeKVCacheSpecs(block_size=TOKENS, kv_cache_specs={"layer": WINDOW})]
)
def test_blocks_that_have_left_a_sliding_window_are_not_checked(
    rank: Rank, spec: KVCacheSpec
) -> None:
    check = rank.check(spec, FULL)
    # With 47 tokens computed, the next one reads tokens 16 to 46: block 0 of the request is out.
    check.check(plan(begin("a", [40, 1, 2, 3], [1], computed=47)), 1)
    with pytest.raises(SanityError, match="block 40"):
        check.check(plan(begin("b", [40, 1, 2, 3], [1], computed=46)), 2)


@pytest.mark.parametrize(
    ("spec", "tokens"),
    # A chunk of 32 tokens begins with the 33rd; the state after 17 tokens lies in the second block.
    [(CHUNKS, 2 * TOKENS), (STATES, TOKENS + 1)],
    ids=["chunks", "states"],
)
def test_blocks_before_a_chunk_or_a_state_are_not_checked(
    rank: Rank, spec: KVCacheSpec, tokens: int
) -> None:
    check = rank.check(spec, FULL)
    check.check(plan(begin("a", [40, 1, 2, 3], [1], computed=tokens)), 1)
    with pytest.raises(SanityError, match="block 40"):
        check.check(plan(begin("b", [40, 1, 2, 3], [1], computed=tokens - 1)), 2)


def test_the_one_state_of_a_request_is_always_checked(rank: Rank) -> None:
    check = rank.check(dataclasses.replace(STATES, block_size=8192, mamba_cache_mode="none"))
    with pytest.raises(SanityError, match="block 40"):
        check.check(plan(begin("a", [40], computed=5000)), 1)


def test_full_attention_with_a_window_keeps_its_blocks_and_is_checked_whole(rank: Rank) -> None:
    spec = FullAttentionSpec(block_size=TOKENS, sliding_window=2 * TOKENS, **_SHAPE)
    with pytest.raises(SanityError, match="block 40"):
        rank.check(spec).check(plan(begin("a", [40, 1, 2, 3], computed=47)), 1)


def test_a_write_to_released_memory_stops_the_next_step(path: Path) -> None:
    # An extent takes a granule and a half, so that it shares one with its neighbour.
    block_bytes = 24 << 10
    made = Rank(path, block_bytes)
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    region = made.pager.region(0)
    address = ctypes.c_uint64.from_address(get_pointer(region, b"dltensor")).value
    check = made.check()
    check.check(plan(begin("a", [1])), 1)
    ctypes.memset(address + BLOCKS_PER_EXTENT * block_bytes, 0, 1)  # extent 1, not committed
    made.commit(extents=2)
    with pytest.raises(SanityError, match="were written to while no extent used them"):
        check.check(plan(further={"a": None}), 2)
    made.pager.stop()


class Manager:
    """What check_owners() asks of vLLM's KV cache manager."""

    def __init__(self, tables: dict[str, tuple[list[int], ...]]) -> None:
        blocks = [KVCacheBlock(number) for number in range(10)]
        self.block_pool = SimpleNamespace(blocks=blocks, null_block=blocks[0])
        self.get_block_ids = tables.__getitem__
        for table in tables.values():
            for block in {block for group in table for block in group}:
                blocks[block].ref_cnt += 1


def test_requests_may_share_what_they_both_own() -> None:
    tables = {"a": ([0, 1, 2], [0]), "b": ([0, 1, 3], [4])}
    check_owners(1, tables, Manager(tables), BlockIds(BLOCKS_PER_EXTENT))


def test_a_block_that_two_use_and_one_owns_is_named_with_its_request() -> None:
    tables = {"a": ([1, 2],), "b": ([1, 3],)}
    manager = Manager(tables)
    manager.block_pool.blocks[1].ref_cnt -= 1
    with pytest.raises(SanityError) as caught:
        check_owners(9, tables, manager, BlockIds(BLOCKS_PER_EXTENT))
    assert str(caught.value) == (
        "kvcached: sanity check: step 9: request 'b' uses block 1, which 2 requests use and 1 own"
    )


def test_a_block_in_use_that_nobody_owns_is_found() -> None:
    tables: dict[str, tuple[list[int], ...]] = {"a": ([5],)}
    manager = Manager(tables)
    manager.block_pool.blocks[5].ref_cnt = 0
    with pytest.raises(SanityError, match="'a' uses block 5, which 1 requests use and 0 own"):
        check_owners(1, tables, manager, BlockIds(BLOCKS_PER_EXTENT))


def test_ids_with_gaps_are_looked_up_by_the_blocks_they_stand_for(path: Path) -> None:
    made = Rank(path, layout="extent")
    made.commit(extents=2)
    check = made.check()
    first, second, third = 0, 3 * BLOCKS_PER_EXTENT, 6 * BLOCKS_PER_EXTENT
    check.check(plan(begin("a", [first + 1, first + 3, second, second + 3])), 1)
    with pytest.raises(SanityError, match=rf"uses block {third} of extent 2, which is absent"):
        check.check(plan(begin("b", [third])), 2)
    with pytest.raises(SanityError, match=r"uses block 4, and there are 62 blocks"):
        check.check(plan(begin("c", [first + BLOCKS_PER_EXTENT])), 3)
    made.pager.stop()


def test_owners_are_counted_by_the_blocks_that_ids_stand_for() -> None:
    ids = BlockIds(BLOCKS_PER_EXTENT, 3)
    tables = {"a": ([ids.id_of(block) for block in (1, 5)],), "b": ([ids.id_of(5)],)}
    numbers = {"a": ([1, 5],), "b": ([5],)}
    manager = Manager(numbers)
    manager.get_block_ids = tables.__getitem__
    check_owners(1, tables, manager, ids)
    manager.block_pool.blocks[5].ref_cnt -= 1
    with pytest.raises(SanityError, match="uses block 13, which 2 requests use and 1 own"):
        check_owners(1, tables, manager, ids)
