"""The block queue against a plain model of what vLLM expects of its free queue."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from miniature import BLOCKS_PER_EXTENT, Cache

from kvcached import _C

NUM_BLOCKS = 62  # the last extent is short


class Block:
    """An engine's block: the queue knows it by its number."""

    __slots__ = ("block_id",)

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id


class QueueModel(RuleBasedStateMachine):
    """Free blocks go out lowest first, cached ones after them in the order of their return."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="kvcached-tests-")
        self.cache = Cache(f"{self.directory}/engine.0.row", NUM_BLOCKS)
        self.pool = _C.Pool([self.cache.path], 1, 3)
        self.blocks = [Block(number) for number in range(NUM_BLOCKS)]
        self.queue = _C.BlockQueue(self.pool, self.blocks)
        self.free = set(range(BLOCKS_PER_EXTENT))
        self.cached: list[int] = []
        self.used: set[int] = set()
        self.step = 0

    def teardown(self) -> None:
        """Gives the memory back."""
        self.cache.close()
        shutil.rmtree(self.directory)

    @initialize()
    def take_the_null_block(self) -> None:
        """As vLLM does first of all."""
        self.take(1)

    @property
    def order(self) -> list[int]:
        return sorted(self.free) + self.cached

    def now_used(self, blocks: list[Block]) -> None:
        for block in blocks:
            assert block is self.blocks[block.block_id]
            # The block's memory is there: a write would end the test's process if not.
            self.cache.fill(block.block_id, block.block_id + 1)
            self.used.add(block.block_id)
            self.free.discard(block.block_id)
        self.cached = [block for block in self.cached if block not in self.used]

    def extents_of(self, blocks: set[int]) -> set[int]:
        extents = {block // BLOCKS_PER_EXTENT for block in blocks}
        return {block for block in range(NUM_BLOCKS) if block // BLOCKS_PER_EXTENT in extents}

    def take_in_what_changed(self) -> None:
        """Memory comes and goes by whole extents without a used or cached block."""
        known = self.free | set(self.cached)
        now = set(self.pool.in_order())
        gained, lost = now - known, known - now
        assert gained == self.extents_of(gained)
        assert lost == self.extents_of(lost)
        assert lost <= self.free
        assert not gained & self.used
        self.free = (self.free | gained) - lost

    @rule(count=st.integers(0, 24))
    def take(self, count: int) -> None:
        """popleft_n: all that were asked for, or an error and none."""
        expected = self.order[:count]
        if count > len(self.order):
            with pytest.raises(ValueError, match="more blocks asked for than are free"):
                self.queue.popleft_n(count)
            return
        taken = self.queue.popleft_n(count)
        assert [block.block_id for block in taken] == expected
        self.now_used(taken)

    @rule()
    def take_one(self) -> None:
        """popleft."""
        if not self.order:
            with pytest.raises(ValueError, match="no free block"):
                self.queue.popleft()
            return
        expected = self.order[0]
        block = self.queue.popleft()
        assert block.block_id == expected
        self.now_used([block])

    @rule(number=st.integers(0, NUM_BLOCKS - 1))
    def touch(self, number: int) -> None:
        """remove, as for a prefix hit."""
        if number not in self.order:
            with pytest.raises(ValueError, match="not free"):
                self.queue.remove(self.blocks[number])
            return
        self.queue.remove(self.blocks[number])
        self.now_used([self.blocks[number]])

    # What is drawn may not depend on when a pager answers, so blocks are drawn by position.
    @rule(picks=st.lists(st.integers(0, NUM_BLOCKS), max_size=40), cached=st.booleans())
    def give_back(self, picks: list[int], cached: bool) -> None:
        """append_n with a prefix, prepend_n without."""
        candidates = sorted(self.used - {0})  # the null block never comes back
        if not candidates:
            return
        chosen = list(dict.fromkeys(candidates[pick % len(candidates)] for pick in picks))
        self.give(chosen, cached)

    @rule(pick=st.integers(0, NUM_BLOCKS), hashed=st.integers(0, BLOCKS_PER_EXTENT))
    def give_back_an_extent(self, pick: int, hashed: int) -> None:
        """All used blocks of one extent, the first ones with a prefix: as a request ends."""
        candidates = sorted(self.used - {0})
        if not candidates:
            return
        chosen = sorted(self.extents_of({candidates[pick % len(candidates)]}) & set(candidates))
        self.give(chosen[:hashed], True)
        self.give(chosen[hashed:], False)

    def give(self, chosen: list[int], cached: bool) -> None:
        assert all(self.cache.holds(number, number + 1) for number in chosen)
        blocks = [self.blocks[number] for number in chosen]
        if cached and len(blocks) == 1:
            self.queue.append(blocks[0])
        elif cached:
            self.queue.append_n(blocks)
        else:
            self.queue.prepend_n(blocks)
        self.used -= set(chosen)
        if cached:
            self.cached += chosen
        else:
            self.free |= set(chosen)

    @rule(number=st.integers(0, NUM_BLOCKS - 1))
    def give_back_what_is_not_used(self, number: int) -> None:
        """Is refused, both ways."""
        if number in self.used:
            return
        for give in (self.queue.append_n, self.queue.prepend_n):
            with pytest.raises(ValueError, match="not in use"):
                give([self.blocks[number]])

    @rule(numbers=st.lists(st.integers(0, NUM_BLOCKS + 5), max_size=12))
    def forget(self, numbers: list[int]) -> None:
        """Cached blocks become free; used, free and unknown ones stay what they are."""
        self.queue.forget(numbers)
        self.free |= set(numbers) & set(self.cached)
        self.cached = [number for number in self.cached if number not in numbers]

    @rule(number=st.integers(0, NUM_BLOCKS - 1))
    def ask_whether_it_holds(self, number: int) -> None:
        """What is used or cached holds what was written to it."""
        held = number in self.used or number in self.cached
        assert self.queue.holds(self.blocks[number]) == held

    @rule(keep=st.integers(0, 10))
    def look_for_the_coldest(self, keep: int) -> None:
        """At least the excess, cached ones alone, each once; nothing changes."""
        chosen = self.pool.coldest(keep)
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= set(self.cached)
        assert len(chosen) >= len(self.cached) - keep
        # The extents that only cached blocks hold are bounded, too.
        extents = -(-keep // self.pool.blocks_per_extent)
        if len(self.cached) <= keep and self.pool.cache_held_extents <= extents:
            assert chosen == []

    @rule(count=st.integers(0, NUM_BLOCKS))
    def ensure(self, count: int) -> None:
        """Whatever can be committed is."""
        enough = self.pool.ensure(count, 2.0)
        self.take_in_what_changed()
        assert enough == (len(self.free) >= count)
        if not self.pool.releasing_extents:
            assert enough == (count <= NUM_BLOCKS - len(self.used) - len(self.cached))

    @rule(idle=st.booleans())
    def balance(self, idle: bool) -> None:
        """Keeps or releases free extents; what is used or cached stays."""
        self.pool.balance(idle)
        self.take_in_what_changed()

    @rule()
    def finish_step(self) -> None:
        """A step runs from its plan to its output."""
        self.step += 1
        self.pool.begin_step(self.step)
        self.cache.pager.launched(self.step)
        self.pool.processed(self.step)

    @invariant()
    def counts_and_order_agree(self) -> None:
        """Every view of the queue is the model's."""
        order = self.order
        assert self.queue.num_free_blocks == len(order) == self.pool.num_free
        assert self.pool.num_unhashed == len(self.free)
        assert self.pool.num_cached == len(self.cached)
        assert self.pool.num_used == len(self.used)
        assert self.pool.num_usable == len(order) + len(self.used)
        assert [block.block_id for block in self.queue.get_all_free_blocks()] == order
        assert [block.block_id for block in self.queue.iter_blocks_after(None)] == order
        middle = len(order) // 2
        if order:
            after = self.queue.iter_blocks_after(self.blocks[order[middle]])
            assert [block.block_id for block in after] == order[middle + 1 :]

    @invariant()
    def an_extent_is_empty_when_all_of_it_is_free(self) -> None:
        """Only such an extent may go; the pinned one is not counted."""
        empty = [
            first
            for first in range(BLOCKS_PER_EXTENT, NUM_BLOCKS, BLOCKS_PER_EXTENT)
            if self.extents_of({first}) <= self.free
        ]
        assert self.pool.empty_extents == len(empty)

    @invariant()
    def every_block_in_play_has_memory(self) -> None:
        """Used and free ones are committed, and used ones hold what was written."""
        assert self.used | self.free | set(self.cached) <= self.cache.committed_blocks()
        for number in self.used:
            assert self.cache.holds(number, number + 1)


TestQueueModel = QueueModel.TestCase
TestQueueModel.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)


def test_an_engine_that_counts_other_blocks_is_refused(open_cache: Any) -> None:
    pool = _C.Pool([open_cache().path])
    with pytest.raises(ValueError, match="count blocks differently"):
        _C.BlockQueue(pool, [Block(0)])


def test_a_queue_keeps_its_pool(open_cache: Any, shm_dir: Path) -> None:
    cache = open_cache()
    queue = _C.BlockQueue(_C.Pool([cache.path]), [Block(number) for number in range(64)])
    assert queue.num_free_blocks == BLOCKS_PER_EXTENT
    assert queue.popleft().block_id == 0


def test_an_object_without_a_number_is_no_block(open_cache: Any) -> None:
    queue = _C.BlockQueue(_C.Pool([open_cache().path]), [Block(number) for number in range(64)])
    with pytest.raises(AttributeError, match="block_id"):
        queue.append(object())


@pytest.mark.parametrize("number", [-1, 64])
def test_a_number_that_is_no_blocks_is_refused(open_cache: Any, number: int) -> None:
    queue = _C.BlockQueue(_C.Pool([open_cache().path]), [Block(number) for number in range(64)])
    for call in (queue.append, queue.remove):
        with pytest.raises(ValueError, match="no"):
            call(Block(number))


def test_ids_jump_over_the_pages_of_other_layers(open_cache: Any) -> None:
    layers, size = 3, BLOCKS_PER_EXTENT
    ids = [number // size * size * layers + number % size for number in range(64)]
    pool = _C.Pool([open_cache().path], 0, 64)
    queue = _C.BlockQueue(pool, [Block(block_id) for block_id in ids], layers)
    assert pool.ensure(3 * size, 10.0)
    taken = queue.popleft_n(3 * size)
    assert [block.block_id for block in taken] == ids[: 3 * size]
    queue.prepend_n(taken)
    queue.remove(taken[size])
    with pytest.raises(ValueError, match="not free"):
        queue.remove(taken[size])
    for block_id in (size, size * layers - 1, ids[-1] + 1, -1):
        with pytest.raises(ValueError, match="no block has this id"):
            queue.remove(Block(block_id))
