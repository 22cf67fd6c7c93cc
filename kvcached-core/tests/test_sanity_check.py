"""What a pager does, and a row tells, for KVCACHED_SANITY_CHECK."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from miniature import BLOCKS_PER_EXTENT, Cache

from kvcached import _C

OpenCache = Callable[..., Cache]
PATTERN = 0x3F


@pytest.mark.parametrize(("sanity_check", "byte"), [(True, PATTERN), (False, 0)])
def test_memory_is_handed_out_with_the_pattern_under_the_check_and_with_zeros_without(
    open_cache: OpenCache, sanity_check: bool, byte: int
) -> None:
    cache = open_cache(sanity_check=sanity_check)
    pool = _C.Pool([cache.path], 0, 0)
    assert pool.ensure(2 * BLOCKS_PER_EXTENT, 10.0)
    committed = cache.committed_blocks()
    assert len(committed) > BLOCKS_PER_EXTENT
    assert all(cache.holds(block, byte) for block in committed)
    assert cache.pager.violation == ""


def test_a_row_tells_of_all_extents_at_once_which_are_committed(open_cache: OpenCache) -> None:
    cache = open_cache(num_blocks=62)
    pool = _C.Pool([cache.path], 0, 0)
    assert pool.ensure(2 * BLOCKS_PER_EXTENT, 10.0)
    states = [cache.row.state(extent) for extent in range(cache.geometry.num_extents)]
    assert list(cache.row.committed()) == [state == "committed" for state in states]
    assert 1 < sum(cache.row.committed()) < len(states)


def test_there_is_no_fence_of_an_extent_that_does_not_exist(open_cache: OpenCache) -> None:
    cache = open_cache()
    assert cache.row.fence(cache.geometry.num_extents - 1) == 0
    with pytest.raises(IndexError):
        cache.row.fence(cache.geometry.num_extents)
