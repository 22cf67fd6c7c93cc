"""The check of a batch against the page table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvcached_sglang.sanity import SanityError, StepCheck

PAGE = 2


class _Row:
    """Four extents of two pages; the second and the last have no memory."""

    states = ("committed", "absent", "committed", "releasing")

    def describe(self) -> dict[str, int]:
        return {"rank": 0, "blocks_per_extent": 2, "num_blocks": 8, "num_extents": 4}

    def committed(self) -> bytes:
        return bytes(state == "committed" for state in self.states)

    def state(self, extent: int) -> str:
        return self.states[extent]


def _check(violation: str = "", slots: list[int] | None = None) -> StepCheck:
    pager: Any = SimpleNamespace(violation=violation)
    row: Any = _Row()
    return StepCheck(pager, row, PAGE, None if slots is None else torch.tensor(slots))


def _batch(rows: list[list[int]], new: list[int] | None = None) -> Any:
    longest = max(map(len, rows))
    # What lies behind a request's length is another's from before, and nobody reads it.
    table = torch.tensor([[0] * longest] + [row + [5] * (longest - len(row)) for row in rows])
    return SimpleNamespace(
        reqs=[SimpleNamespace(rid=f"r{number}") for number in range(len(rows))],
        req_pool_indices=torch.arange(1, len(rows) + 1),
        req_to_token_pool=SimpleNamespace(req_to_token=table.to(torch.int32)),
        seq_lens=torch.tensor([len(row) for row in rows]),
        out_cache_loc=None if new is None else torch.tensor(new),
    )


def test_a_batch_with_memory_passes() -> None:
    _check().check(_batch([[2, 3, 8, 9], [10]], [9, 10]), 1)


def test_a_page_without_memory_stops_the_engine() -> None:
    with pytest.raises(SanityError, match="'r1' uses slot 6 of page 3, extent 1, which is absent"):
        _check().check(_batch([[2, 3], [10, 6]]), 7)


def test_a_new_slot_without_memory_stops_the_engine() -> None:
    with pytest.raises(SanityError, match="slot 13 of page 6, extent 3, which is releasing"):
        _check().check(_batch([[2, 3]], [13]), 7)


def test_a_slot_that_does_not_exist_stops_the_engine() -> None:
    with pytest.raises(SanityError, match="slot 16, and there are 16 slots"):
        _check().check(_batch([[2, 16]]), 7)


def test_a_slot_that_is_handed_out_twice_stops_the_engine() -> None:
    with pytest.raises(SanityError, match="handed out twice"):
        _check().check(_batch([[2, 3], [3]], [3, 3]), 7)


def test_a_windows_slots_are_looked_up_by_those_of_full_attention() -> None:
    # Slot 2 lies behind the window, and has none there any more.
    slots = [0, 0, 0, 2, 9, 6]
    _check(slots=slots).check(_batch([[2, 3, 4]], [4]), 1)
    with pytest.raises(SanityError, match="'r0' uses slot 6 of page 3, extent 1, which is absent"):
        _check(slots=slots).check(_batch([[2, 3, 5]]), 7)


def test_what_the_pager_has_seen_stops_the_engine() -> None:
    with pytest.raises(SanityError, match="step 3: rank 0: extent 2 was written to"):
        _check("extent 2 was written to").check(_batch([[2]]), 3)
