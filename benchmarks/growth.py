"""Memory in bulk: growing to many GiB and giving it back, alone and from one engine to another.

  cycles   pool and pager over the system's bare calls with the very same handle sizes, for extents
           of 2, 16 and 64 MiB, and for extents of 2 MiB that the pool gathers into units as it sees
           fit: `at once` one wish for everything, `as it fills` in sixteen steps, each one taken
  moves    from the moment an engine wants what an idle one keeps cached until all of it is usable
  drain    what large handles pin: memory held over memory live while 256 requests become 16

`--parts` names some of them. What a pager grows by is zeroed where the driver does not promise
zeros (on CUDA); the bare calls zero nothing. On the sim driver memory exists on paper, and what is
left is kvcached's own work and its waking up; there is no floor to compare with.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks import drain, moves, pagers, scratch
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples, ratios
from benchmarks.shapes import Shape
from kvcached import _C

MIB = 1 << 20
OVER_BARE = Target(at_most=1.2)
PARTS = ("cycles", "moves", "drain")
#: After the bare calls, in seconds. A driver that has just got memory back takes three times as
#: long to give 10 GiB of it out again (28 ms for 9, on an H200); kvcached's turns end with a rest
#: as it is.
_REST = 0.3
#: Steps in which a cache fills, each a sixteenth of the whole.
FILLING_STEPS = 16


@dataclass(frozen=True)
class Units:
    """How memory is cut into handles: extents of `extent_bytes`, in units of at most `max_handle`
    bytes (0: what the driver finds useful)."""

    name: str
    extent_bytes: int
    max_handle: int
    fills: bool = False
    """Whether the cache fills in steps; otherwise everything is wanted at once."""

    @property
    def shape(self) -> Shape:
        return Shape("block-major", 1, self.extent_bytes)


UNITS = (
    *(Units(f"{size} MiB", size * MIB, size * MIB) for size in (2, 16, 64)),
    Units("pool's choice, at once", 2 * MIB, 0),
    Units("pool's choice, as it fills", 2 * MIB, 0, True),
)


#: The cuts that memory moves in from engine to engine: all but the dearest, and one wish at once.
MOVED = UNITS[1:4]


@dataclass
class _Block:
    block_id: int


class _Cache:
    """An engine whose cache fills and empties."""

    def __init__(self, engine: pagers.Engine, units: Units) -> None:
        self._engine = engine
        self._steps = FILLING_STEPS if units.fills else 1
        blocks = [_Block(index) for index in range(engine.pool.num_blocks)]
        self._queue = _C.BlockQueue(engine.pool, blocks)
        self._taken: list[_Block] = []

    def grow(self) -> float:
        """Grows to everything; returns the seconds spent waiting for memory."""
        spent, left = 0.0, self._engine.extents
        for step in range(self._steps):
            extents = left // (self._steps - step)
            left -= extents
            if not extents:
                continue
            began = time.perf_counter()
            self._engine.grow(extents)
            spent += time.perf_counter() - began
            self._taken += self._queue.popleft_n(self._engine.pool.num_unhashed)
        return spent

    def release(self) -> float:
        """Gives everything back; returns the seconds until it is gone."""
        self._queue.prepend_n(self._taken)
        self._taken = []
        began = time.perf_counter()
        self._engine.release_all()
        return time.perf_counter() - began

    def handle_sizes(self) -> list[int]:
        """Of all handles there are but the pinned one, in bytes."""
        return [count * self._engine.plan.extent_bytes for _, count in self._engine.pool.units()]


def measure_cycles(report: Report, kind: str, gib: float, rounds: int, units: Units) -> None:
    """Adds the rows of growth and release over the bare calls."""
    calls = pagers.bare_calls(kind)
    extents = max(1, int(gib * 1024) * MIB // units.extent_bytes)
    grown: list[float] = []
    released: list[float] = []
    bare: list[tuple[float, float]] = []
    sizes: list[int] = []
    with (
        scratch.directory() as directory,
        pagers.engine(
            kind, units.shape, extents, directory, max_handle_bytes=units.max_handle
        ) as engine,
    ):
        cache = _Cache(engine, units)

        def paged() -> None:
            nonlocal sizes
            grown.append(cache.grow())
            sizes = cache.handle_sizes()
            released.append(cache.release())
            engine.settle()

        def alone() -> None:
            commit, unmap, destroy = calls.time_sizes(sizes)
            bare.append((commit[0] / 1e9, (unmap[0] + destroy[0]) / 1e9))
            time.sleep(_REST)

        # The first round meets everything cold, and tells the sizes.
        paged()
        alone()
        del grown[:], released[:], bare[:]
        steps: list[Callable[[], None]] = [paged, alone]
        for _ in range(rounds):
            for step in steps:
                step()
            steps.reverse()
    facts: dict[str, object] = {
        "bytes": sum(sizes),
        "handles": len(sizes),
        "largest_handle": max(sizes),
        "smallest_handle": min(sizes),
    }
    for side, what, ours in ((0, "growth", grown), (1, "release", released)):
        spent = Samples("s", ours)
        alone_spent = Samples("s", [times[side] for times in bare])
        name = f"{units.name} ({len(sizes):,} handles), {what}"
        parts = {"kvcached": spent, "bare": alone_spent}
        target = None if kind == "sim" else OVER_BARE
        report.add(Row(name, ratios(spent, alone_spent), target, parts, facts))
        rates = Samples("GB/s", [sum(sizes) / 1e9 / seconds for seconds in ours])
        report.add(Row(name, rates, facts=facts))


def measure(report: Report, options: argparse.Namespace) -> None:
    """Adds the rows of every part asked for. What cannot be measured costs its own rows alone."""
    parts: list[tuple[str, Callable[[], None]]] = []
    if "cycles" in options.parts:
        cycles = partial(measure_cycles, report, options.driver, options.gib, options.rounds)
        parts += [(units.name, partial(cycles, units)) for units in UNITS]
    if "moves" in options.parts:
        parts += [
            (f"move, {units.name}", partial(_move, report, options, units))
            for units in MOVED
            if units.name in options.moved
        ]
    if "drain" in options.parts:
        drained = partial(drain.measure, report, options.driver, options.gib, options.seeds)
        parts.append(("drain", drained))
    for name, part in parts:
        print(f"{name} ...", flush=True)
        try:
            part()
        except (_C.Error, pagers.Slow, EOFError) as error:
            report.fail(name, str(error) or repr(error))


def _move(report: Report, options: argparse.Namespace, units: Units) -> None:
    moves.measure(
        report,
        options.driver,
        options.gib,
        options.moves,
        units.name,
        units.shape,
        units.max_handle,
    )


def main() -> int:
    parser = arguments_of(__doc__ or "")
    parser.add_argument("--driver", choices=("host", "cuda", "sim"), default="host")
    parser.add_argument("--gib", type=float, help="how much; 10 but for 0.5 on the host")
    parser.add_argument("--rounds", type=int, default=11, help="of growth and release")
    parser.add_argument("--moves", type=int, default=50, help="from one engine to the other")
    moved = [units.name for units in MOVED]
    parser.add_argument("--moved", nargs="+", choices=moved, default=moved, help="which cuts")
    parser.add_argument("--seeds", type=int, default=5, help="of the drain")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    options.gib = options.gib or (0.5 if options.driver == "host" else 10.0)
    if options.quick:
        options.gib, options.rounds, options.moves, options.seeds = 0.25, 3, 4, 1
    report = Report("growth", options)
    measure(report, options)
    return report.finish(f"Memory in bulk on the {options.driver} driver, {options.gib:g} GiB")


if __name__ == "__main__":
    sys.exit(main())
