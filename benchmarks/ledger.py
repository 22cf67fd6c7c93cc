"""The ledger's operations, each timed by itself in a native loop.

  grant      a lease grows by a granule; `contended` asks the policy about sixteen tenants first
  release    it shrinks by a granule again
  ruling     what the policy says to one lease, contended: sixteen tenants

`plain` is a ledger on which nobody waits for memory. With `8 processes` eight do the same to one
ledger at once, on as many cores as there are. A time has the clock's own in it, which the first
row shows. A process that is preempted inside an operation sees a time slice, not the ledger: it
shows in the largest time, never in p99 unless more than one operation in a hundred is hit.
"""

from __future__ import annotations

import argparse
import array
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import scratch
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "benchmarks"

#: For one process: the median, in microseconds.
ALONE_TARGET = Target(at_most=1.0)
#: For several at once: the p99, in microseconds.
TOGETHER_TARGET = Target(at_most=10.0)
#: Times of one operation that the JSON keeps; percentiles are of all.
KEPT = 2000


def build() -> Path:
    """Builds the native program, with the CMake and compiler on the path; returns where it is."""
    configure = ["cmake", "-S", str(ROOT / "native"), "-B", str(BUILD)]
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DKVCACHED_BUILD_BENCHMARKS=ON"]
    for command in (
        [*configure, *options],
        ["cmake", "--build", str(BUILD), "--target", "ledger_bench"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return BUILD / "ledger_bench"


def measured(program: Path, operations: int, processes: int) -> Iterator[tuple[str, list[float]]]:
    """Runs the program; yields each case's name and its times in microseconds, ascending."""
    with scratch.directory() as directory:
        command = [str(program), f"{directory}/bench.ledger", str(operations), str(processes)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    at = 0
    while at < len(output):
        end = output.index(b"\n", at)
        name, count = output[at:end].decode().rsplit(" ", 1)
        times = array.array("I")
        at = end + 1 + int(count) * times.itemsize
        times.frombytes(output[end + 1 : at])
        yield name, sorted(time / 1000 for time in times)


def row_of(name: str, times: list[float]) -> Row:
    """The case's row: its median for one process, its p99 for several."""
    together = name.endswith("processes")
    p99 = times[len(times) * 99 // 100]
    # Evenly over the sorted times, so that the quantiles of what is kept are those of all.
    kept = Samples("us", times[:: max(1, len(times) // KEPT)])
    figure, target = (Samples("us", [p99]), TOGETHER_TARGET) if together else (kept, ALONE_TARGET)
    return Row(
        f"{name}, p99" if together else name,
        figure,
        None if name == "clock" else target,
        {"of all": kept, "p99": Samples("us", [p99]), "largest": Samples("us", [times[-1]])},
        {"operations": len(times)},
    )


def measure(report: Report, options: argparse.Namespace) -> None:
    """Adds every row."""
    program = options.program or build()
    operations = 20_000 if options.quick else options.operations
    for name, times in measured(program, operations, options.processes):
        report.add(row_of(name, times))


def main() -> int:
    parser = arguments_of(__doc__ or "")
    parser.add_argument("--operations", type=int, default=1_000_000, help="a process; even")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--program", type=Path, help="ledger_bench, where it is built already")
    options = parser.parse_args()
    report = Report("ledger", options)
    report.note(cores_available=len(os.sched_getaffinity(0)))
    measure(report, options)
    return report.finish("The ledger; times of one operation, the clock's own included")


if __name__ == "__main__":
    sys.exit(main())
