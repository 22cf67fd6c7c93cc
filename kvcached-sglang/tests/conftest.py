"""A pool over this machine's memory, as one rank has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvcached import _C
from kvcached_sglang.page_supply import PageSupply

PAGES = 64
PAGES_PER_EXTENT = 4
PAGE_BYTES = 16 << 10  # a quarter of the host's granule


@pytest.fixture
def pager(tmp_path: Path) -> Iterator[_C.Pager]:
    driver = _C.host_driver()
    driver.probe()
    geometry = _C.Geometry(
        PAGES, [PAGES * PAGE_BYTES], [(0, 0, PAGE_BYTES, PAGE_BYTES)], PAGES_PER_EXTENT
    )
    made = _C.Pager(driver, geometry, str(tmp_path / "rank.row"), "test", "layer")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def supply(pager: _C.Pager, tmp_path: Path) -> PageSupply:
    pool = _C.Pool([str(tmp_path / "rank.row")], 1, 10)
    return PageSupply(pool, torch.device("cpu"), page_size=2)
