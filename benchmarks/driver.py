"""What the driver's virtual-memory calls cost, for handles of 2 MiB to 1 GiB.

Each call is timed by itself in a native loop, and so is the whole cycle of committing and
releasing. On CUDA the calls are those of libcuda.so.1 alone; the column `driver` is the same
through kvcached's driver, with its account of what is mapped, its checks and its care for the
thread's context.

`scrub and wait` zeroes one handle and waits for it; `scrub` only starts to, and the wait for all of
them comes later and is not in it. kvcached's driver hands neighbours to the device together.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from benchmarks.pagers import bare_calls, driver_of
from benchmarks.report import Report, Row, arguments_of
from benchmarks.samples import Samples
from kvcached import _C

MIB = 1 << 20
SIZES = tuple(mebibytes * MIB for mebibytes in (2, 16, 64, 256, 1024))
CALLS = ("create", "map", "set_access", "scrub and wait", "scrub", "unmap", "destroy")
#: Handles of a cycle are all there at once, as in a cache; at least so many, in so many rounds.
CYCLE_HANDLES = 8
CYCLE_ROUNDS = 21


def _name(size: int) -> str:
    return f"{size // MIB} MiB" if size < 1024 * MIB else f"{size // (1024 * MIB)} GiB"


def _microseconds(nanoseconds: list[int]) -> Samples:
    # What was never called before costs more, once.
    warm = nanoseconds[len(nanoseconds) // 20 :]
    return Samples("us", [value / 1000 for value in warm])


def measure_calls(
    report: Report,
    bare: _C.DriverCalls,
    through: _C.DriverCalls | None,
    size: int,
    count: int,
    live: int,
) -> None:
    """Adds a row for each of the driver's calls on handles of `size` bytes."""
    ours = through.time_each(size, count, live) if through is not None else {}
    for name, times in sorted(bare.time_each(size, count, live).items(), key=_order):
        figure = _microseconds(times)
        parts = {"mean": Samples("us", [statistics.fmean(figure.values)])}
        if name in ours:
            parts["driver"] = _microseconds(ours[name])
        report.add(Row(f"{_name(size)}, {name}", figure, None, parts, {"bytes": size}))


def _order(item: tuple[str, list[int]]) -> int:
    return CALLS.index(item[0])


def measure_cycle(
    report: Report, bare: _C.DriverCalls, through: _C.DriverCalls | None, size: int, handles: int
) -> None:
    """Adds the rows of committing and releasing many handles of `size` bytes."""
    rates: list[float] = []
    cycles: list[float] = []
    ours: list[float] = []
    for _ in range(CYCLE_ROUNDS):
        spent = sum(wall for wall, _ in bare.time_sizes([size] * handles))
        cycles.append(spent / handles / 1000)
        rates.append(size * handles / spent)
        if through is not None:
            through_it = sum(wall for wall, _ in through.time_sizes([size] * handles))
            ours.append(through_it / handles / 1000)
    parts = {"mean": Samples("us", [statistics.fmean(cycles)])}
    if ours:
        parts["driver"] = Samples("us", ours)
    facts: dict[str, object] = {"bytes": size, "handles": handles}
    report.add(Row(f"{_name(size)}, commit and release", Samples("us", cycles), None, parts, facts))
    report.add(Row(f"{_name(size)}, commit and release", Samples("GB/s", rates), facts=facts))


def measure(report: Report, options: argparse.Namespace) -> None:
    """Adds every row."""
    bare = bare_calls(options.driver)
    # The host driver is its own floor.
    through = _C.DriverCalls.of(driver_of("cuda")) if options.driver == "cuda" else None
    for size in SIZES:
        if size > options.largest_mib * MIB:
            break
        live = max(1, int(options.live_gib * 1024) * MIB // size)
        count = max(CYCLE_HANDLES, min(options.calls, int(options.moved_gib * 1024) * MIB // size))
        measure_calls(report, bare, through, size, count, live)
        measure_cycle(report, bare, through, size, min(live, count))


def main() -> int:
    parser = arguments_of(__doc__ or "")
    parser.add_argument("--driver", choices=("host", "cuda"), default="host")
    parser.add_argument("--calls", type=int, default=2000, help="of each kind and size, at most")
    parser.add_argument("--live-gib", type=float, help="most memory at a time")
    parser.add_argument("--moved-gib", type=float, help="most memory for all calls of a size")
    parser.add_argument("--largest-mib", type=int, help="largest handle")
    options = parser.parse_args()
    # The host's kernel zeroes 4 to 8 GB/s; a GPU takes no time by the byte.
    on_gpu = options.driver == "cuda"
    options.live_gib = options.live_gib or (8 if on_gpu else 0.5)
    options.moved_gib = options.moved_gib or (4096 if on_gpu else 1)
    options.largest_mib = options.largest_mib or (1024 if on_gpu else 64)
    if options.quick:
        options.calls = 40
    report = Report("driver", options)
    measure(report, options)
    return report.finish(f"The calls of the {options.driver} driver")


if __name__ == "__main__":
    sys.exit(main())
