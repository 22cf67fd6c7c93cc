"""What the engine sees of its pages, and what has memory."""

from __future__ import annotations

import pytest
import torch

from conftest import PAGES
from kvcached import _C
from kvcached_sglang.page_supply import PageSupply


def taken(supply: PageSupply, pages: int) -> torch.Tensor:
    ids = supply.take(pages)
    assert ids is not None
    return ids


def test_page_0_is_nobodys(supply: PageSupply) -> None:
    assert supply.pages == PAGES - 1
    assert taken(supply, 3).tolist() == [1, 2, 3]


def test_all_of_the_address_space_can_be_had_where_it_is_granted(supply: PageSupply) -> None:
    assert supply.available_tokens == 2 * (PAGES - 1)
    assert sorted(taken(supply, PAGES - 1).tolist()) == list(range(1, PAGES))
    assert supply.available_tokens == 0


def test_more_than_is_granted_is_a_miss_whatever_has_memory(supply: PageSupply) -> None:
    taken(supply, 2)
    supply.grant(3)
    assert supply.pool.ensure(5, 1.0)
    assert supply.take(2) is None
    assert taken(supply, 1).numel() == 1


def test_pages_are_available_once_they_are_back_and_go_out_again(supply: PageSupply) -> None:
    first = taken(supply, 5)
    supply.give(first[1:3])
    assert supply.used == 3
    assert taken(supply, 2).tolist() == [2, 3]


def test_a_page_that_comes_back_twice_is_refused_and_none_of_its_company_is_lost(
    supply: PageSupply,
) -> None:
    ids = taken(supply, 3)
    free = supply.pool.num_free
    with pytest.raises(ValueError, match="not in use"):
        supply.give(torch.tensor([1, 2, 2]))
    assert supply.pool.num_free == free
    supply._used = 3  # the refused give had counted
    supply.give(ids)


def test_used_available_and_withheld_are_all_there_is(supply: PageSupply) -> None:
    ids = taken(supply, 10)
    for granted in (PAGES - 1, 20, 10, 4):
        supply.grant(granted)
        total = supply.used * 2 + supply.available_tokens + supply.withheld_tokens
        assert total == 2 * (PAGES - 1)
    supply.give(ids)
    assert supply.available_tokens == 2 * 4


def test_an_offer_counts_what_could_be_granted_only_while_the_next_batch_is_there(
    supply: PageSupply,
) -> None:
    assert supply.offer(0) == PAGES - 1
    there = supply.pool.num_usable - 1
    assert supply.offer(supply.pool.num_free + 1) == there


def test_an_offer_never_exceeds_the_limit(supply: PageSupply) -> None:
    supply.pool.set_limit(3 * 65536)
    assert supply.offer(0) == 3 * 4 - 1


def test_clearing_gives_back_all_but_page_0(supply: PageSupply) -> None:
    taken(supply, 30)
    supply.clear()
    assert supply.used == 0
    assert supply.available_tokens == 2 * (PAGES - 1)
    assert 0 not in taken(supply, PAGES - 1).tolist()


def test_memory_goes_back_only_behind_the_batch_that_was_launched_last(
    supply: PageSupply, pager: _C.Pager
) -> None:
    ids = taken(supply, 40)
    step = supply.launched()
    supply.give(ids)
    held = supply.pool.usable_extents + supply.pool.releasing_extents
    supply.pool.balance(True)
    supply.pool.wait(0.2)
    supply.pool.balance(True)
    assert supply.pool.usable_extents + supply.pool.releasing_extents == held
    pager.launched(step)
    for _ in range(50):
        supply.pool.balance(True)
        if not supply.pool.in_flight:
            break
        supply.pool.wait(0.1)
    assert supply.pool.usable_extents <= 1 + supply.pool.slack_target
