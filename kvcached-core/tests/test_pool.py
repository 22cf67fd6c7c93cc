"""A pool and its pagers over this machine's memory."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from miniature import BLOCK_BYTES, BLOCKS_PER_EXTENT, Cache, eventually

from kvcached import _C

EXTENT_BYTES = BLOCKS_PER_EXTENT * BLOCK_BYTES
TESTS = Path(__file__).parent

OpenCache = Callable[..., Cache]


class Block:
    def __init__(self, block_id: int) -> None:
        self.block_id = block_id


def queue_over(pool: _C.Pool) -> _C.BlockQueue[Block]:
    return _C.BlockQueue(pool, [Block(number) for number in range(pool.num_blocks)])


def grow_to(pool: _C.Pool, blocks: int) -> None:
    assert pool.ensure(blocks, 5.0), pool.num_unhashed


def settle(cache: Cache, pool: _C.Pool, step: int) -> bool:
    """Steps, until the pool has what it wants and all that may go is gone."""

    def settled() -> bool:
        nonlocal step
        step += 1
        pool.begin_step(step)
        cache.pager.launched(step)
        pool.processed(step)
        pool.balance(True)
        return not pool.in_flight and pool.empty_extents <= pool.slack_target

    return eventually(settled)


def in_child(script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


TOUCH = """
import sys
from miniature import Cache
cache = Cache(sys.argv[1])
print("touching", flush=True)
cache.fill(int(sys.argv[2]), 1)
print("touched", flush=True)
cache.close()
"""


@pytest.mark.parametrize("block", [0, BLOCKS_PER_EXTENT - 1])
def test_committed_memory_can_be_touched(shm_dir: Path, block: int) -> None:
    done = in_child(TOUCH, str(shm_dir / "engine.0.row"), str(block))
    assert done.returncode == 0, done.stderr
    assert "touched" in done.stdout


@pytest.mark.parametrize("block", [BLOCKS_PER_EXTENT, 63])
def test_uncommitted_memory_faults_when_touched(shm_dir: Path, block: int) -> None:
    done = in_child(TOUCH, str(shm_dir / "engine.0.row"), str(block))
    assert done.stdout == "touching\n"
    assert done.returncode == -signal.SIGSEGV


def test_released_memory_faults_when_touched(shm_dir: Path) -> None:
    script = """
import sys
from miniature import Cache
from test_pool import queue_over, settle
from kvcached import _C
cache = Cache(sys.argv[1])
pool = _C.Pool([cache.path], 0, 0)
queue = queue_over(pool)
assert pool.ensure(8, 5.0)
blocks = queue.popleft_n(8)
cache.fill(7, 1)
queue.prepend_n(blocks)
assert settle(cache, pool, 0)
print("touching", flush=True)
cache.fill(7, 1)
"""
    done = in_child(script, str(shm_dir / "engine.0.row"))
    assert done.stdout == "touching\n", done.stderr
    assert done.returncode == -signal.SIGSEGV


def test_the_kernel_counts_the_memory_that_the_row_says_is_mapped(open_cache: OpenCache) -> None:
    cache = open_cache()
    pool = _C.Pool([cache.path], 0, 0)
    queue = queue_over(pool)
    for wanted in (4, 16, 40, 64):
        grow_to(pool, wanted - pool.num_used)
        for block in queue.popleft_n(pool.num_unhashed):
            cache.fill(block.block_id, 1)
        assert pool.num_used >= wanted
        assert cache.row.describe()["mapped_bytes"] == pool.num_used * BLOCK_BYTES
        assert cache.resident_bytes() == cache.row.describe()["mapped_bytes"]


def test_what_is_released_is_gone_for_the_kernel_too(open_cache: OpenCache) -> None:
    cache = open_cache()
    pool = _C.Pool([cache.path], 0, 0)
    queue = queue_over(pool)
    grow_to(pool, 64)
    blocks = queue.popleft_n(64)
    for block in blocks:
        cache.fill(block.block_id, 1)
    queue.prepend_n(blocks[16:])
    assert settle(cache, pool, 0)
    described = cache.row.describe()
    assert described["mapped_bytes"] == 16 * BLOCK_BYTES
    assert described["releases"] == (64 - 16) // BLOCKS_PER_EXTENT
    assert cache.resident_bytes() == described["mapped_bytes"]
    assert cache.committed_blocks() == set(range(16))
    assert all(cache.holds(block, 1) for block in range(16))


def test_kept_handles_are_given_back_within_a_second(open_cache: OpenCache) -> None:
    cache = open_cache()
    pool = _C.Pool([cache.path], 0, 0)
    grow_to(pool, 64)
    assert settle(cache, pool, 0)
    assert eventually(lambda: cache.row.describe()["held_bytes"] == EXTENT_BYTES, 1.0)


def test_memory_that_comes_back_is_zero(open_cache: OpenCache) -> None:
    cache = open_cache()
    pool = _C.Pool([cache.path], 0, 0)
    queue = queue_over(pool)
    for step in (0, 1000):
        grow_to(pool, 64)
        blocks = queue.popleft_n(64)
        # The pinned extent stays, with what is in it.
        assert all(cache.holds(block, 0) for block in range(BLOCKS_PER_EXTENT, 64))
        for block in blocks:
            cache.fill(block.block_id, 255)
        queue.prepend_n(blocks)
        assert settle(cache, pool, step)
        assert pool.usable_extents == 1


def test_everything_is_given_back_at_the_end(open_cache: OpenCache, shm_dir: Path) -> None:
    cache = open_cache()
    pool = _C.Pool([cache.path])
    grow_to(pool, 64)
    for block in range(64):
        cache.fill(block, 1)
    assert cache.resident_bytes() == 64 * BLOCK_BYTES
    cache.pager.stop()
    assert list(shm_dir.iterdir()) == []
    assert cache.resident_bytes() == 64 * BLOCK_BYTES, "tensors may still point there"
    cache.close()
    gc.collect()
    assert cache.resident_bytes() == 0


def test_there_is_no_region_beyond_the_last(open_cache: OpenCache) -> None:
    with pytest.raises(IndexError):
        open_cache().pager.region(1)


def test_a_limit_is_an_ordinary_miss_and_never_exceeded(open_cache: OpenCache) -> None:
    cache = open_cache(limit_bytes=3 * EXTENT_BYTES)
    pool = _C.Pool([cache.path], 0, 0)
    assert not pool.ensure(64, 0.2)
    assert pool.num_usable == 3 * BLOCKS_PER_EXTENT
    assert pool.num_growable == 0
    assert cache.row.describe()["held_bytes"] == 3 * EXTENT_BYTES
    pool.set_limit(5 * EXTENT_BYTES)
    assert pool.ensure(5 * BLOCKS_PER_EXTENT, 5.0)
    assert not pool.ensure(5 * BLOCKS_PER_EXTENT + 1, 0.2)


def test_a_denial_is_told_and_forgotten_when_memory_may_be_back(open_cache: OpenCache) -> None:
    cache = open_cache(limit_bytes=2 * EXTENT_BYTES)
    pool = _C.Pool([cache.path], 0, 0)
    # The pager's own limit, lowered behind the pool's back, as another process would.
    other = _C.Pool([cache.path], 0, 0)
    other.set_limit(EXTENT_BYTES)
    assert not pool.ensure(2 * BLOCKS_PER_EXTENT, 1.0)
    assert pool.denied
    assert pool.denied_recently
    assert cache.row.describe()["denials"] == 1
    assert "limit" in cache.pager.last_error
    other.set_limit(2 * EXTENT_BYTES)

    def granted() -> bool:
        pool.begin_step(1)
        return pool.ensure(2 * BLOCKS_PER_EXTENT, 0.05)

    assert eventually(granted)
    assert not pool.denied


def test_nothing_is_released_before_its_step_is_launched_and_processed(
    open_cache: OpenCache,
) -> None:
    cache = open_cache()
    pool = _C.Pool([cache.path], 0, 0)
    queue = queue_over(pool)
    grow_to(pool, 8)
    blocks = queue.popleft_n(8)
    pool.begin_step(1)
    queue.prepend_n(blocks)
    pool.balance(True)
    assert pool.releasing_extents == 1

    def gone() -> bool:
        pool.balance(True)
        return pool.releasing_extents == 0

    assert not eventually(gone, 0.1)
    pool.processed(1)
    assert not eventually(gone, 0.1), "processed, but not launched here"
    assert cache.row.state(1) == "releasing"
    cache.pager.launched(1)
    assert eventually(gone)
    assert cache.row.state(1) == "absent"


def test_the_pinned_extent_is_never_released(open_cache: OpenCache) -> None:
    cache = open_cache()
    pool = _C.Pool([cache.path], 0, 0)
    assert settle(cache, pool, 0)
    assert cache.committed_blocks() == set(range(BLOCKS_PER_EXTENT))


def test_a_pool_over_two_ranks_hands_out_what_both_have(open_cache: OpenCache) -> None:
    ranks = [open_cache(f"engine.{rank}.row", rank=rank) for rank in range(2)]
    pool = _C.Pool([rank.path for rank in ranks], 0, 0)
    grow_to(pool, 40)
    for rank in ranks:
        assert set(pool.in_order()) <= rank.committed_blocks()


def test_what_one_rank_refuses_the_others_give_back(open_cache: OpenCache) -> None:
    roomy = open_cache("engine.0.row")
    tight = open_cache("engine.1.row", rank=1, limit_bytes=2 * EXTENT_BYTES)
    pool = _C.Pool([roomy.path, tight.path], 0, 0)
    assert not pool.ensure(64, 1.0)
    assert pool.num_usable == 2 * BLOCKS_PER_EXTENT

    def even() -> bool:
        pool.balance(True)
        return roomy.committed_blocks() == tight.committed_blocks() and not pool.in_flight

    assert eventually(even)


def test_ranks_that_differ_are_refused(open_cache: OpenCache) -> None:
    paths = [
        open_cache("engine.0.row").path,
        open_cache("engine.1.row", rank=1, num_blocks=32).path,
    ]
    with pytest.raises(_C.Error, match="differ from rank 0"):
        _C.Pool(paths)


def test_a_pool_of_no_rows_is_refused() -> None:
    with pytest.raises(_C.Error, match="needs the row of a rank"):
        _C.Pool([])


def test_a_vanilla_row_says_why_and_carries_no_pool(shm_dir: Path) -> None:
    path = str(shm_dir / "engine.0.row")
    row = _C.Row.vanilla(path, "engine", "because of a test", 0)
    assert row.owner_alive
    described = _C.Row.attach(path).describe()
    assert (described["mode"], described["reason"]) == ("vanilla", "because of a test")
    with pytest.raises(_C.Error, match="runs vanilla: because of a test"):
        _C.Pool([path])
    del row
    gc.collect()
    assert not Path(path).exists()


def test_a_missing_row_is_named(shm_dir: Path) -> None:
    with pytest.raises(_C.Error, match=r"nobody\.0\.row: .*No such file"):
        _C.Row.attach(str(shm_dir / "nobody.0.row"))


def test_a_file_that_is_no_row_is_refused(shm_dir: Path) -> None:
    path = shm_dir / "other.0.row"
    path.write_bytes(b"x" * 10_000)
    with pytest.raises(_C.Error):
        _C.Row.attach(str(path))


def test_two_engines_cannot_have_one_row(open_cache: OpenCache) -> None:
    open_cache()
    with pytest.raises(_C.Error, match="held by a running engine"):
        open_cache()


OWNER = """
import sys, time
from miniature import Cache
cache = Cache(sys.argv[1])
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_owners_row_is_refused_and_removed(open_cache: OpenCache, shm_dir: Path) -> None:
    alive = open_cache("alive.0.row")
    path = shm_dir / "killed.0.row"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(path)], cwd=TESTS, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    with owner.stdout:
        assert owner.stdout.readline() == "ready\n"
        pool = _C.Pool([str(path)])
        assert pool.dead_row == ""
        owner.kill()
        owner.wait()
    assert pool.dead_row == str(path)
    with pytest.raises(_C.Error, match=r"killed\.0\.row: left behind by a process that is gone"):
        _C.Row.attach(str(path))
    with pytest.raises(_C.Error, match="left behind"):
        _C.Pool([str(path)])
    assert _C.remove_dead_rows(str(shm_dir)) == [str(path)]
    assert [entry.name for entry in shm_dir.iterdir()] == ["alive.0.row"]
    assert alive.row.owner_alive


def test_a_new_engine_takes_a_dead_ones_name(open_cache: OpenCache, shm_dir: Path) -> None:
    path = shm_dir / "engine.0.row"
    done = in_child(
        "import os, signal, sys\nfrom miniature import Cache\ncache = Cache(sys.argv[1])\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        str(path),
    )
    assert done.returncode == -signal.SIGKILL
    assert path.exists()
    assert open_cache("engine.0.row").row.owner_alive


def test_files_that_are_no_rows_are_left_alone(shm_dir: Path) -> None:
    (shm_dir / "notes.txt").touch()
    assert _C.remove_dead_rows(str(shm_dir)) == []
    assert _C.remove_dead_rows(str(shm_dir / "missing")) == []
    assert (shm_dir / "notes.txt").exists()


def test_a_driver_belongs_to_its_pager(shm_dir: Path) -> None:
    driver = _C.host_driver()
    driver.probe()
    geometry = _C.Geometry(4, [4 * BLOCK_BYTES], [(0, 0, BLOCK_BYTES, BLOCK_BYTES)], 4)
    pager = _C.Pager(driver, geometry, str(shm_dir / "engine.0.row"))
    with pytest.raises(TypeError), pytest.warns(RuntimeWarning, match="relinquished"):
        driver.probe()
    del pager


def test_a_geometry_outside_its_region_is_refused() -> None:
    with pytest.raises(_C.Error, match="a span leaves its region"):
        _C.Geometry(4, [4 * BLOCK_BYTES - 1], [(0, 0, BLOCK_BYTES, BLOCK_BYTES)])


def test_a_start_that_fails_leaves_nothing(shm_dir: Path) -> None:
    driver = _C.host_driver(EXTENT_BYTES)
    driver.probe()
    geometry = _C.Geometry(64, [64 * BLOCK_BYTES], [(0, 0, BLOCK_BYTES, BLOCK_BYTES)], 4)
    path = str(shm_dir / "engine.0.row")
    pager = _C.Pager(driver, geometry, path, pinned_extents=2)
    with pytest.raises(_C.Error, match="2 extents that are always committed"):
        pager.start()
    assert list(shm_dir.iterdir()) == []


def test_blocks_go_out_and_come_back_as_arrays(open_cache: OpenCache) -> None:
    cache = open_cache()
    pool = _C.Pool([cache.path])
    grow_to(pool, 6)
    ids = array("q", [-1] * 6)
    pool.take_into(ids)
    assert list(ids) == [0, 1, 2, 3, 4, 5]
    pool.give(ids[2:4])
    assert pool.num_used == 4
    with pytest.raises(ValueError, match="not in use"):
        pool.give(array("q", [0, 2]))
    assert pool.num_used == 4
    with pytest.raises(ValueError, match="more blocks"):
        pool.take_into(array("q", [0] * (pool.num_free + 1)))
    pool.give_rest(1)
    assert pool.num_used == 1
