"""Allocating and freeing blocks: kvcached's queue against vLLM's own.

Both queues run in this process under vLLM's own BlockPool. Rounds alternate, and the figure is
the median over the rounds of ours divided by vLLM's. Memory for every block is committed before,
as it is in an engine: the free list never holds a block without memory.

  block pool   BlockPool.get_new_blocks(n), then free_blocks(): what a scheduler does
  churn        the same with half of the pool in use and requests that end in random order
  queue lifo   popleft_n(n), then prepend_n(): blocks that hold no prefix
  queue lru    popleft_n(n), then append_n(): blocks that hold one
"""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine, scratch
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples, ratios

TARGET = Target(at_most=1.1)
SIZES = (1, 16, 256)
#: Small, so that 100,000 blocks are 100 MB; the queue never looks at a block's bytes.
BLOCK_BYTES = 1024
#: One granule of the host driver.
BLOCKS_PER_EXTENT = 64
#: Length of one measurement in nanoseconds. Short, so that a round's two see the same machine.
SAMPLE_NS = 1_000_000

Operation = Callable[[int], None]


def _repeat(calls: int) -> itertools.repeat[None]:
    return itertools.repeat(None, calls)


def pool_cycle(pool: Any, size: int) -> Operation:
    """Allocate and free at once: the queue's own cost, in the processor's caches."""
    take, free = pool.get_new_blocks, pool.free_blocks

    def run(calls: int) -> None:
        for _ in _repeat(calls):
            free(take(size))

    return run


def pool_churn(pool: Any, size: int) -> Operation:
    """Requests of `size` blocks come and end in random order while half of the pool is in use."""
    take, free = pool.get_new_blocks, pool.free_blocks
    generator = random.Random(size)
    held: list[Any] = []

    def run(calls: int) -> None:
        if not held:
            held.extend(take(size) for _ in range(len(pool.blocks) // 2 // size))
        for victim in generator.choices(range(len(held)), k=calls):
            arriving = take(size)
            free(held[victim])
            held[victim] = arriving

    return run


def queue_lifo(pool: Any, size: int) -> Operation:
    queue = pool.free_block_queue
    take, give = queue.popleft_n, queue.prepend_n

    def run(calls: int) -> None:
        for _ in _repeat(calls):
            give(take(size))

    return run


def queue_lru(pool: Any, size: int) -> Operation:
    queue = pool.free_block_queue
    take, give = queue.popleft_n, queue.append_n

    def run(calls: int) -> None:
        for _ in _repeat(calls):
            give(take(size))

    return run


OPERATIONS: dict[str, Callable[[Any, int], Operation]] = {
    "block pool": pool_cycle,
    "churn": pool_churn,
    "queue lifo": queue_lifo,
    "queue lru": queue_lru,
}


def vanilla_pool(blocks: int) -> Any:
    """vLLM's block pool as vLLM makes it, with prefix caching on, which is its default."""
    from vllm.v1.core.block_pool import BlockPool

    return BlockPool(num_gpu_blocks=blocks, enable_caching=True, hash_block_size=16)


class ElasticPool:
    """vLLM's block pool over a kvcached pool with every extent committed."""

    def __init__(self, blocks: int, directory: Path) -> None:
        from kvcached import _C

        driver = _C.host_driver()
        driver.probe()
        size = BLOCK_BYTES * blocks
        geometry = _C.Geometry(
            blocks, [size], [(0, 0, BLOCK_BYTES, BLOCK_BYTES)], BLOCKS_PER_EXTENT
        )
        path = str(directory / "pool.row")
        self._pager = _C.Pager(driver, geometry, path)
        self._pager.start()
        self._pool = _C.Pool([path], 0, 0)
        if not self._pool.ensure(blocks, 60.0):
            raise RuntimeError(f"this machine does not have {size >> 20} MiB for the benchmark")
        self.block_pool = vanilla_pool(blocks)
        queue = _C.BlockQueue(self._pool, self.block_pool.blocks)
        queue.remove(self.block_pool.null_block)
        self.block_pool.free_block_queue = queue

    def close(self) -> None:
        self._pager.stop()


def _nanoseconds(operation: Operation, calls: int) -> float:
    # The thread's own processor time: nothing here sleeps, and other processes do not count.
    began = time.thread_time_ns()
    operation(calls)
    return (time.thread_time_ns() - began) / calls


def _calls_a_sample(operation: Operation) -> int:
    _nanoseconds(operation, 10)
    return max(1, round(SAMPLE_NS / _nanoseconds(operation, 10)))


def compare(ours: Operation, theirs: Operation, rounds: int) -> tuple[Samples, Samples]:
    """Nanoseconds a call of both, in rounds that alternate in turn who goes first."""
    times: tuple[list[float], list[float]] = ([], [])
    calls = _calls_a_sample(theirs)
    _nanoseconds(ours, calls)
    for turn in range(rounds):
        order = ((0, ours), (1, theirs)) if turn % 2 == 0 else ((1, theirs), (0, ours))
        for index, operation in order:
            times[index].append(_nanoseconds(operation, calls))
    return Samples("ns", times[0]), Samples("ns", times[1])


def measure(report: Report, options: argparse.Namespace) -> None:
    """Adds a row for every operation and size."""
    rounds = 51 if options.quick else options.rounds
    with scratch.directory() as directory:
        for name, make in OPERATIONS.items():
            for size in SIZES:
                # New pools each time: an operation finds the free list as an engine starts it.
                elastic = ElasticPool(options.blocks, directory)
                vanilla = vanilla_pool(options.blocks)
                gc.collect()
                gc.freeze()
                gc.disable()
                with machine.pinned_to_one_core() as core:
                    ours, theirs = compare(
                        make(elastic.block_pool, size), make(vanilla, size), rounds
                    )
                gc.enable()
                gc.unfreeze()
                elastic.close()
                report.add(
                    Row(
                        f"{name}, {size}",
                        ratios(ours, theirs),
                        TARGET,
                        {"kvcached": ours, "vLLM": theirs},
                        {"blocks_a_call": size, "core": core},
                    )
                )


def main() -> int:
    parser = arguments_of(__doc__ or "")
    parser.add_argument("--blocks", type=int, default=100_000, help="blocks in the pool")
    parser.add_argument("--rounds", type=int, default=401, help="measurements of each queue")
    options = parser.parse_args()
    # The engine's lines are of no use here.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["ENABLE_KVCACHED"] = "false"
    logging.disable(logging.WARNING)
    report = Report("pool", options)
    measure(report, options)
    return report.finish(
        f"A call that takes n blocks and one that frees them, {options.blocks:,} blocks in the pool"
    )


if __name__ == "__main__":
    sys.exit(main())
