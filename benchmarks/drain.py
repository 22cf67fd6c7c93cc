"""What large handles pin: memory held over memory live while many requests become few.

The real pool and pager, over a driver on paper. 256 requests run for a while, each replaced when
it ends; then none is replaced until 16 are left. Lengths are random, blocks are 16 tokens and 2 MiB
(all layers of an 8 B model together), a step is 16 tokens of every request. A handle goes back only
when its last block is free; free blocks go out lowest address first.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass, field

from benchmarks import pagers, scratch
from benchmarks.report import Report, Row
from benchmarks.samples import Samples
from benchmarks.shapes import Shape
from kvcached import _C

MIB = 1 << 20
BLOCK = 2 * MIB
MANY, FEW = 256, 16
#: Blocks of a prompt and of an answer, from and to; 64 to 2,048 and 16 to 1,024 tokens.
PROMPT = (4, 128)
ANSWER = (1, 64)
#: Steps with many requests, and with few behind the drain.
STEPS = 160
#: Most blocks that can be in use.
BLOCKS = MANY * (PROMPT[1] + ANSWER[1])


@dataclass
class _Block:
    block_id: int


@dataclass
class _Request:
    answer: int
    """Blocks still to come."""
    blocks: list[_Block] = field(default_factory=list)


@dataclass(frozen=True)
class Cut:
    """How the cache is cut: extents of so many blocks, in units of at most `max_handle` bytes."""

    name: str
    blocks_per_extent: int
    max_handle: int
    announced: bool = False
    """Whether the pool hears before a step what all new requests together will take, as vLLM's
    scheduler tells it: the first 256 then come in large units."""


CUTS = (
    *(Cut(f"{2 * blocks} MiB", blocks, 2 * blocks * MIB) for blocks in (1, 2, 4, 8, 32)),
    Cut("pool's choice, grown little by little", 1, 64 * MIB),
    Cut("pool's choice, begun with a burst", 1, 64 * MIB, announced=True),
)


@dataclass
class Drained:
    """One run: held over live of every step from the drain's begin on, and the handles there were
    when it began, in bytes."""

    ratios: list[float]
    handles: list[int]


class _Engine:
    """A scheduler of random requests."""

    def __init__(self, engine: pagers.Engine, seed: int, announced: bool) -> None:
        assert engine.pager is not None
        self._pager = engine.pager
        self._row = engine.row
        self._pool = engine.pool
        blocks = [_Block(index) for index in range(self._pool.num_blocks)]
        self._queue = _C.BlockQueue(self._pool, blocks)
        self._extent_bytes = engine.plan.extent_bytes
        self._dice = random.Random(seed)
        self._announced = announced
        self._running: list[_Request] = []
        self._step = 0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def handles(self) -> list[int]:
        return [count * self._extent_bytes for _, count in self._pool.units()]

    @property
    def held_over_live(self) -> float:
        return self._pool.usable_extents * self._extent_bytes / (self._pool.num_used * BLOCK)

    def step(self, requests: int) -> None:
        """One step, before which new requests come until there are so many."""
        self._step += 1
        self._pool.begin_step(self._step)
        missing = max(0, requests - len(self._running))
        new = [
            (_Request(self._dice.randint(*ANSWER)), self._dice.randint(*PROMPT))
            for _ in range(missing)
        ]
        if self._announced:
            self._pool.expect(sum(prompt for _, prompt in new))
        for request, prompt in new:
            self._take(request, prompt)
            self._running.append(request)
        for request in self._running:
            self._take(request, 1)
            request.answer -= 1
        self._pager.launched(self._step)
        self._pool.processed(self._step)
        for request in self._running:
            if request.answer == 0:
                self._queue.prepend_n(request.blocks)
        self._running = [request for request in self._running if request.answer]
        self._settle()

    def _take(self, request: _Request, blocks: int) -> None:
        if not self._pool.ensure(blocks, pagers.PATIENCE):
            raise pagers.Slow("a driver on paper gave no memory")
        request.blocks += self._queue.popleft_n(blocks)

    def _settle(self) -> None:
        # Everything is answered before the next step, so that every run of a seed is the same,
        # however fast the pager is.
        if coming := self._pool.wanted_extents * self._pool.blocks_per_extent:
            self._pool.ensure(self._pool.num_unhashed + coming, pagers.PATIENCE)
        self._pool.expect(0)
        self._pool.balance(False)
        deadline = time.monotonic() + pagers.PATIENCE
        while (
            self._row.describe()["mapped_bytes"] != self._pool.usable_extents * self._extent_bytes
        ):
            if time.monotonic() > deadline:
                raise pagers.Slow("the pager does not keep up")
            time.sleep(0.0001)


def simulate(cut: Cut, seed: int) -> Drained:
    """One drain."""
    shape = Shape("block-major", 1, BLOCK, BLOCK * cut.blocks_per_extent)
    extents = BLOCKS // cut.blocks_per_extent
    with (
        scratch.directory() as directory,
        pagers.engine("sim", shape, extents, directory, max_handle_bytes=cut.max_handle) as paper,
    ):
        engine = _Engine(paper, seed, cut.announced)
        for _ in range(STEPS):
            engine.step(MANY)
        drained = Drained([], engine.handles)
        while engine.running > FEW:
            engine.step(FEW)
            drained.ratios.append(engine.held_over_live)
        for _ in range(STEPS):
            engine.step(FEW)
            drained.ratios.append(engine.held_over_live)
    return drained


def _of_so_many_bytes(sizes: list[int], gib: float) -> list[int]:
    """Sizes in the same proportions, `gib` GiB of them or a little less."""
    wanted = gib * (1 << 30) / sum(sizes)
    chosen, due = [], 0.0
    for size in sorted(sizes):
        due += wanted
        while due >= 1:
            chosen.append(size)
            due -= 1
    return chosen or [min(sizes)]


def measure(report: Report, kind: str, gib: float, seeds: int) -> None:
    """Adds a row for each way to cut a cache: the peak of held over live, and what growing by
    `gib` GiB in such handles costs on the driver."""
    calls = pagers.bare_calls(kind)
    for cut in CUTS:
        runs = [simulate(cut, seed) for seed in range(seeds)]
        sizes = _of_so_many_bytes(runs[0].handles, gib)
        grown = [calls.time_sizes(sizes)[0][0] / 1e6 for _ in range(5)]
        means = [statistics.fmean(run.ratios) for run in runs]
        report.add(
            Row(
                f"drain, {cut.name}, peak of held over live",
                Samples("ratio", [max(run.ratios) for run in runs]),
                None,
                {
                    "mean": Samples("ratio", means),
                    f"bare growth of {gib:g} GiB": Samples("ms", grown),
                },
                {
                    "handles_before_the_drain": len(runs[0].handles),
                    "bytes_before_the_drain": sum(runs[0].handles),
                    "steps": len(runs[0].ratios),
                },
            )
        )
