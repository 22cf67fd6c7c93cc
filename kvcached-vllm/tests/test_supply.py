"""vLLM's real block pool over an elastic queue, beside one over vLLM's own."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.distributed.kv_events import BlockRemoved
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHash, KVCacheBlock
from vllm.v1.request import RequestStatus

from kvcached import _C
from kvcached_vllm.extent_layout import BlockIds
from kvcached_vllm.supply import BlockSupply

TOKENS = 16
BLOCK_BYTES = 16 << 10
BLOCKS_PER_EXTENT = 4
EXTENT_BYTES = BLOCK_BYTES * BLOCKS_PER_EXTENT


class Engine:
    """An elastic block pool as the scheduler sees it, and the pager of its one rank."""

    def __init__(
        self,
        path: Path,
        num_blocks: int,
        limit_bytes: int,
        cached: int | None,
        layers: int,
        events: bool,
    ) -> None:
        driver = _C.host_driver()
        driver.probe()
        size = num_blocks * BLOCK_BYTES
        geometry = _C.Geometry(
            num_blocks, [size], [(0, 0, BLOCK_BYTES, BLOCK_BYTES)], BLOCKS_PER_EXTENT
        )
        self.pager = _C.Pager(driver, geometry, str(path), limit_bytes=limit_bytes)
        self.pager.start()
        self.row = _C.Row.attach(str(path))
        self.block_pool = BlockPool(
            num_blocks, enable_caching=True, hash_block_size=TOKENS, enable_kv_cache_events=events
        )
        self.ids = BlockIds(BLOCKS_PER_EXTENT, layers)
        # Running, so that it waits for the pager however slow the machine is.
        self.requests: dict[str, Any] = {"request": SimpleNamespace(status=RequestStatus.RUNNING)}
        self.supply = BlockSupply(
            _C.Pool([str(path)], 1, 4), self.block_pool, self.requests, 0, cached, self.ids
        )

    def step(self) -> None:
        """A scheduling step, launched and processed at once."""
        step = self.supply.begin_step()
        self.supply.end_step()
        self.pager.launched(step)
        self.supply.finish_step(step)

    def fetch(self, blocks: int) -> None:
        """Commits what can be, once what is on its way out is gone: vLLM's pool has no such."""
        for _ in range(100):
            self.supply.provide(blocks, "request", ())
            if blocks <= self.supply.pool.num_unhashed or not self.supply.pool.in_flight:
                return
            self.supply.pool.wait(0.05)

    def uncommitted(self, blocks: list[KVCacheBlock]) -> list[int]:
        """Those of the blocks that have no memory."""
        return [
            block.block_id
            for block in blocks
            if self.row.state(self.ids.block_of(block.block_id) // BLOCKS_PER_EXTENT) != "committed"
        ]

    def check(self) -> None:
        """What holds between any two calls."""
        pool, block_pool = self.supply.pool, self.block_pool
        free = block_pool.free_block_queue.get_all_free_blocks()
        assert block_pool.get_num_free_blocks() == len(free) == pool.num_free
        assert block_pool.num_gpu_blocks == pool.num_usable
        assert all(block.ref_cnt == 0 and not block.is_null for block in free)
        assert min(block.block_id for block in free) > 0 if free else True
        assert len({block.block_id for block in free}) == len(free)
        held = [block for block in block_pool.blocks if block.ref_cnt > 0]
        assert len(held) + len(free) + 1 == pool.num_usable
        assert self.uncommitted([*free, *held]) == []


@pytest.fixture(params=[1, 3], ids=["ids without gaps", "ids with gaps"])
def make_engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    made: list[Engine] = []

    def make(
        num_blocks: int = 256,
        limit_bytes: int = 0,
        cached: int | None = None,
        events: bool = False,
    ) -> Engine:
        path = tmp_path / "engine.0.row"
        made.append(Engine(path, num_blocks, limit_bytes, cached, request.param, events))
        return made[-1]

    yield make
    for engine in made:
        engine.pager.stop()
    made.clear()
    gc.collect()


@dataclass
class Holder:
    """A request's blocks, the same ones by position in either pool."""

    vanilla: list[KVCacheBlock]
    elastic: list[KVCacheBlock]


class Pair:
    """The same calls to vLLM's own pool and to an elastic one."""

    def __init__(self, engine: Engine, num_blocks: int, seed: int) -> None:
        self.engine = engine
        self.vanilla = BlockPool(num_blocks, enable_caching=True, hash_block_size=TOKENS)
        self.elastic = engine.block_pool
        self.random = random.Random(seed)
        self.holders: list[Holder] = []
        self.known: list[BlockHash] = []

    def new_blocks(self) -> None:
        count = self.random.randint(1, 20)
        self.engine.fetch(count)
        vanilla_fits = count <= self.vanilla.get_num_free_blocks()
        assert (count <= self.elastic.get_num_free_blocks()) == vanilla_fits
        if vanilla_fits:
            elastic = self.elastic.get_new_blocks(count)
            assert len(elastic) == count
            assert all(block.block_id > 0 for block in elastic)
            assert self.engine.uncommitted(elastic) == []
            self.holders.append(Holder(self.vanilla.get_new_blocks(count), elastic))

    def cache(self) -> None:
        """Full blocks get their hashes, as when their tokens are computed."""
        holder = self.pick()
        if holder is None or any(block.block_hash is not None for block in holder.vanilla):
            return
        # As vLLM has it: a prefix is a chain, so every block's hash is its own.
        hashes = [BlockHash(self.random.randbytes(32)) for _ in holder.vanilla]
        full = self.random.randint(0, len(hashes))
        for pool, blocks in ((self.vanilla, holder.vanilla), (self.elastic, holder.elastic)):
            request: Any = SimpleNamespace(block_hashes=hashes)
            pool.cache_full_blocks(request, blocks, 0, full, TOKENS, 0)
        self.known += hashes[:full]

    def hit(self) -> None:
        """Another request finds a prefix, in use or free."""
        if not self.known:
            return
        start = self.random.randrange(len(self.known))
        holder = Holder([], [])
        for block_hash in self.known[start : start + 4]:
            found = [
                pool.get_cached_block(block_hash, [0]) for pool in (self.vanilla, self.elastic)
            ]
            if found[0] is None or found[1] is None:
                continue
            holder.vanilla += found[0]
            holder.elastic += found[1]
        self.vanilla.touch(holder.vanilla)
        self.elastic.touch(holder.elastic)
        if holder.vanilla:
            self.holders.append(holder)

    def free(self) -> None:
        holder = self.pick()
        if holder is None:
            return
        self.holders.remove(holder)
        # vLLM frees a request's tail first.
        self.vanilla.free_blocks(reversed(holder.vanilla))
        self.elastic.free_blocks(reversed(holder.elastic))

    def evict(self) -> None:
        """vLLM drops prefixes by block."""
        chosen = self.random.sample(self.known, min(3, len(self.known)))
        for pool, ids in ((self.vanilla, BlockIds(1)), (self.elastic, self.engine.ids)):
            found = [pool.get_cached_block(block_hash, [0]) for block_hash in chosen]
            # By place in vLLM's list of blocks.
            pool.evict_blocks(
                {ids.block_of(block.block_id) for blocks in found if blocks for block in blocks}
            )

    def reset(self) -> None:
        done = self.vanilla.reset_prefix_cache()
        assert self.elastic.reset_prefix_cache() == done
        if done:
            self.engine.supply.forget_prefixes()
            self.known.clear()
            assert self.engine.supply.pool.num_cached == 0

    def free_all_and_reset(self) -> None:
        while self.holders:
            self.free()
        self.reset()
        assert self.known == []

    def pick(self) -> Holder | None:
        return self.random.choice(self.holders) if self.holders else None

    def check(self) -> None:
        self.engine.check()
        used = self.vanilla.num_gpu_blocks - self.vanilla.get_num_free_blocks()
        assert self.engine.supply.pool.num_used == used
        assert self.elastic.num_gpu_blocks - self.elastic.get_num_free_blocks() == used
        for holder in self.holders:
            counts = [block.ref_cnt for block in holder.vanilla]
            assert [block.ref_cnt for block in holder.elastic] == counts
            assert min(counts) > 0

    def known_to(self, pool: BlockPool) -> set[BlockHash]:
        return {found for found in self.known if pool.get_cached_block(found, [0]) is not None}

    def run(self, calls: int) -> None:
        ways = [self.new_blocks, self.cache, self.cache, self.hit, self.free, self.free]
        ways += [self.evict, self.reset, self.engine.step]
        weights = [6, 6, 0, 4, 6, 3, 1, 1, 4]
        for number in range(calls):
            self.random.choices(ways, weights)[0]()
            self.check()
            if number % 100 == 99:
                self.free_all_and_reset()
                self.check()


@pytest.mark.parametrize("seed", range(8))
def test_the_same_calls_leave_the_same_counts_where_memory_is_tight(
    make_engine: Any, seed: int
) -> None:
    pair = Pair(make_engine(num_blocks=64), 64, seed)
    pair.run(400)


@pytest.mark.parametrize("seed", range(4))
def test_the_same_calls_leave_the_same_prefixes_where_memory_is_plenty(
    make_engine: Any, seed: int
) -> None:
    pair = Pair(make_engine(num_blocks=4096), 4096, seed)
    for _ in range(10):
        pair.run(40)
        assert pair.known_to(pair.elastic) == pair.known_to(pair.vanilla)


def test_a_freed_block_without_a_prefix_is_no_cached_one(make_engine: Any) -> None:
    engine: Engine = make_engine()
    engine.supply.provide(12, "request", ())
    blocks = engine.block_pool.get_new_blocks(12)
    request: Any = SimpleNamespace(block_hashes=[BlockHash(bytes([n] * 32)) for n in range(8)])
    engine.block_pool.cache_full_blocks(request, blocks, 0, 8, TOKENS, 0)
    unhashed = engine.supply.pool.num_unhashed
    engine.block_pool.free_blocks(reversed(blocks))
    assert engine.supply.pool.num_cached == 8
    assert engine.supply.pool.num_unhashed == unhashed + 4
    engine.check()


def test_at_its_limit_the_pool_refuses_as_vllms_does(make_engine: Any) -> None:
    engine: Engine = make_engine(num_blocks=256, limit_bytes=4 * EXTENT_BYTES)
    need = engine.supply.provide(100, "request", ())
    assert need == 100 > engine.block_pool.get_num_free_blocks()
    engine.check()
    with pytest.raises(ValueError, match="Cannot get 100 free blocks"):
        engine.block_pool.get_new_blocks(100)
    blocks = engine.block_pool.get_new_blocks(engine.block_pool.get_num_free_blocks())
    assert len(blocks) == 4 * BLOCKS_PER_EXTENT - 1
    assert engine.block_pool.get_num_free_blocks() == 0
    engine.check()


def test_the_gate_counts_what_can_still_be_granted(make_engine: Any) -> None:
    engine: Engine = make_engine(num_blocks=256, limit_bytes=16 * EXTENT_BYTES)
    free = engine.block_pool.get_num_free_blocks()
    engine.supply.begin_step()
    # Fits when it is at most what is free and what can be had.
    assert engine.supply.promise(16 * BLOCKS_PER_EXTENT - 1) <= free
    assert engine.supply.promise(16 * BLOCKS_PER_EXTENT) > free
    assert engine.supply.pool.num_usable == BLOCKS_PER_EXTENT, "a promise takes nothing"


def test_what_is_left_to_others_need_only_be_grantable_and_is_asked_of_one(
    make_engine: Any,
) -> None:
    engine: Engine = make_engine(num_blocks=256, limit_bytes=16 * EXTENT_BYTES)
    free = 16 * BLOCKS_PER_EXTENT - 1
    engine.supply.begin_step()
    engine.supply.leave(free - 8)
    there = engine.block_pool.get_num_free_blocks
    assert 8 <= engine.supply.provide(8, "request", ()) <= there()
    assert there() < free, "what others will take was not committed"
    engine.supply.leave(free - 4)
    assert engine.supply.provide(8, "request", ()) > there()
    assert engine.supply.provide(8, "request", ()) == 8
    engine.supply.leave(free)
    engine.step()
    assert engine.supply.provide(8, "request", ()) == 8


def test_hits_that_are_free_cost_no_new_block(make_engine: Any) -> None:
    engine: Engine = make_engine(num_blocks=256)
    engine.supply.provide(12, "request", ())
    blocks = engine.block_pool.get_new_blocks(12)
    request: Any = SimpleNamespace(block_hashes=[BlockHash(bytes([n] * 32)) for n in range(12)])
    engine.block_pool.cache_full_blocks(request, blocks, 0, 12, TOKENS, 0)
    engine.block_pool.free_blocks(reversed(blocks))
    usable, unhashed = engine.supply.pool.num_usable, engine.supply.pool.num_unhashed
    engine.supply.provide(12 + unhashed, "request", (blocks,))
    assert engine.supply.pool.num_usable == usable


def test_a_running_request_waits_for_the_pager_and_a_waiting_one_hardly(make_engine: Any) -> None:
    engine: Engine = make_engine(num_blocks=256)
    engine.requests["waits"] = SimpleNamespace(status=RequestStatus.WAITING)
    assert engine.supply._patience("request") == pytest.approx(1.0)
    engine.supply.begin_step()
    assert engine.supply._patience("waits") <= 0.005


def test_prefixes_above_the_cap_are_evicted_and_their_memory_goes(make_engine: Any) -> None:
    engine: Engine = make_engine(num_blocks=256, cached=8)
    engine.supply.provide(200, "request", ())
    blocks = engine.block_pool.get_new_blocks(200)
    hashes = [BlockHash(n.to_bytes(32, "big")) for n in range(200)]
    request: Any = SimpleNamespace(block_hashes=hashes)
    engine.block_pool.cache_full_blocks(request, blocks, 0, 200, TOKENS, 0)
    engine.block_pool.free_blocks(reversed(blocks))
    for _ in range(200):
        engine.step()
        engine.check()
        if not engine.supply.pool.in_flight and engine.supply.pool.empty_extents <= 4:
            break
        engine.supply.pool.wait(0.05)
    found = [h for h in hashes if engine.block_pool.get_cached_block(h, [0]) is not None]
    assert 0 < len(found) == engine.supply.pool.num_cached <= 8
    assert engine.supply.pool.usable_extents < 16


def cache_copies(engine: Engine, hashes: list[BlockHash]) -> list[KVCacheBlock]:
    """Blocks in use that hold these prefixes."""
    engine.supply.provide(len(hashes), "request", ())
    blocks = engine.block_pool.get_new_blocks(len(hashes))
    request: Any = SimpleNamespace(
        block_hashes=hashes,
        all_token_ids=[0] * TOKENS * len(hashes),
        lora_request=None,
        mm_features=[],
        cache_salt=None,
        prompt_embeds=None,
        session_id=None,
    )
    engine.block_pool.cache_full_blocks(request, blocks, 0, len(hashes), TOKENS, 0)
    return blocks


def test_a_prefix_whose_memory_went_is_no_hit_though_vllm_still_knows_it(make_engine: Any) -> None:
    engine: Engine = make_engine(num_blocks=256, cached=0)
    hashes = [BlockHash(bytes([number] * 32)) for number in range(8)]
    blocks = cache_copies(engine, hashes)
    assert engine.block_pool.get_cached_block(hashes[5], [0]) == [blocks[5]]
    engine.block_pool.free_blocks(reversed(blocks))
    engine.supply.tidy(idle=False)
    assert engine.supply.pool.num_cached == 0
    assert blocks[5].block_hash is not None, "vLLM has not been made to forget it"
    assert engine.block_pool.get_cached_block(hashes[5], [0]) is None
    # Its block goes to another request, and is that one's from there on.
    again = cache_copies(engine, [BlockHash(bytes([100 + n] * 32)) for n in range(8)])
    assert {block.block_id for block in again} & {block.block_id for block in blocks}
    for number, block in enumerate(again):
        key = BlockHash(bytes([100 + number] * 32))
        assert engine.block_pool.get_cached_block(key, [0]) == [block]
    assert not any(engine.block_pool.get_cached_block(old, [0]) for old in hashes)


def test_of_two_copies_of_a_prefix_the_one_that_still_has_it_is_found(make_engine: Any) -> None:
    engine: Engine = make_engine(num_blocks=256, cached=0)
    hashes = [BlockHash(bytes([number] * 32)) for number in range(4)]
    first, second = cache_copies(engine, hashes), cache_copies(engine, hashes)
    engine.block_pool.free_blocks(reversed(first))
    engine.supply.tidy(idle=False)
    for key, block in zip(hashes, second, strict=True):
        assert engine.block_pool.get_cached_block(key, [0]) == [block]


def test_prefixes_go_from_a_map_that_vllm_began_anew_without_saying_so(make_engine: Any) -> None:
    # With a connector to be reset, too, vLLM may say no where it has dropped every prefix.
    engine: Engine = make_engine(num_blocks=256, cached=0)
    assert engine.block_pool.reset_prefix_cache()
    hashes = [BlockHash(bytes([number] * 32)) for number in range(4)]
    engine.block_pool.free_blocks(reversed(cache_copies(engine, hashes)))
    assert all(engine.block_pool.get_cached_block(key, [0]) for key in hashes)
    engine.supply.tidy(idle=False)
    assert not any(engine.block_pool.get_cached_block(key, [0]) for key in hashes)


def test_whoever_listens_hears_of_a_forgotten_prefix_at_once(make_engine: Any) -> None:
    engine: Engine = make_engine(num_blocks=256, cached=0, events=True)
    blocks = cache_copies(engine, [BlockHash(bytes([number] * 32)) for number in range(4)])
    engine.block_pool.free_blocks(reversed(blocks))
    engine.block_pool.take_events()
    engine.supply.tidy(idle=False)
    events = engine.block_pool.take_events()
    assert [type(event) for event in events] == [BlockRemoved] * 4
    assert all(block.block_hash is None for block in blocks)


def test_the_null_block_is_never_free(make_engine: Any) -> None:
    engine: Engine = make_engine()
    null = engine.block_pool.null_block
    assert null.block_id == 0
    assert null.is_null
    assert null not in engine.block_pool.free_block_queue.get_all_free_blocks()
    engine.block_pool.touch([null])
    engine.block_pool.free_blocks([null])
    assert null not in engine.block_pool.free_block_queue.get_all_free_blocks()
    engine.check()


def test_usage_is_the_used_share_of_what_the_cache_can_become(make_engine: Any) -> None:
    engine: Engine = make_engine(num_blocks=256)
    assert engine.supply.usage == 0.0
    engine.supply.provide(51, "request", ())
    engine.block_pool.get_new_blocks(51)
    assert engine.supply.usage == pytest.approx(51 / 255)
