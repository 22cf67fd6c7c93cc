"""A limit that comes and goes a thousand times: no block is handed out twice, none is lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm.v1.core.block_pool import BlockPool

from kvcached import _C
from kvcached_vllm.memory_thread import MemoryThread
from kvcached_vllm.supply import BlockSupply

NUM_BLOCKS = 64
BLOCK_BYTES = 64 << 10
TIMES = 1000


class IdleEngine:
    """An engine without requests: vLLM's block pool over ours, a pager, and the memory thread."""

    idle = True

    def __init__(self, folder: Path) -> None:
        self.memory_lock = threading.RLock()
        driver = _C.host_driver()
        driver.probe()
        size = NUM_BLOCKS * BLOCK_BYTES
        geometry = _C.Geometry(NUM_BLOCKS, [size], [(0, 0, BLOCK_BYTES, BLOCK_BYTES)], 1)
        row = str(folder / "engine.row")
        self.pager = _C.Pager(
            driver,
            geometry,
            row,
            ledger=str(folder / "host.ledger"),
            terms=_C.LeaseTerms("test", "one", limit_bytes=size),
        )
        self.pager.start()
        self.block_pool = BlockPool(NUM_BLOCKS, enable_caching=True, hash_block_size=16)
        self.supply = BlockSupply(_C.Pool([row], 0, 0), self.block_pool, {}, 0, None)
        self.ledger = _C.Ledger.open(str(folder / "host.ledger"))
        (lease,) = self.ledger.describe()["leases"]
        self.slot = lease["slot"]
        self.thread = MemoryThread(self, self.supply)
        self.thread.start()

    @property
    def held(self) -> int:
        return self.ledger.snapshot()[2][self.slot]

    def take_everything(self) -> list[int]:
        """All blocks that can be had, handed out as to requests and given back as prefixes."""
        with self.memory_lock:
            pool = self.supply.pool
            step = self.supply.begin_step()
            deadline = time.monotonic() + 10
            while pool.num_free < NUM_BLOCKS - 1 and time.monotonic() < deadline:
                pool.ensure(NUM_BLOCKS - 1 - pool.num_cached, 0.05)
            taken = self.supply.queue.popleft_n(pool.num_free)
            self.supply.queue.append_n(taken)
            self.supply.end_step()
            self.pager.launched(step)
            self.supply.finish_step(step)
            return [block.block_id for block in taken]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[IdleEngine]:
    made = IdleEngine(tmp_path)
    yield made
    made.thread.stop()
    made.pager.stop()


def test_no_block_is_handed_out_twice_and_none_is_lost(engine: IdleEngine) -> None:
    """Shrink, restore, grow again."""
    generator = random.Random(0)
    everything = NUM_BLOCKS * BLOCK_BYTES
    for turn in range(TIMES):
        taken = engine.take_everything()
        assert sorted(taken) == list(range(1, NUM_BLOCKS)), f"turn {turn}"
        limit = generator.randrange(1, NUM_BLOCKS) * BLOCK_BYTES
        order = engine.ledger.set_limit(engine.slot, limit)
        assert engine.ledger.wait_done(engine.slot, order, 10.0), f"turn {turn}"
        assert engine.held <= limit, f"turn {turn}"
        engine.ledger.set_limit(engine.slot, everything)
