"""Several servers on one device: each a fixed part of the KV memory, or all of them sharing it.

Both kinds have the same KV memory in all, `--kv-gib`. Split: vanilla vLLM, an equal part each.
Shared: vLLM with kvcached, KVCACHED_CAPACITY for all together. Every server's load climbs from 0
to `--rate` requests/s and back over `--ramp-seconds`, one server `--apart` seconds after another,
at the same moments in both kinds. Prefix caching is off: no prompt comes twice.

  TTFT      from when the request was due to its first token
  TPOT      between tokens after the first, on average over one answer
  late      how long after it was due the client sent a request: the client's own fault
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import arrivals, engines, models, servers, traffic
from benchmarks.engines import EngineFailed
from benchmarks.gpu_memory import HAS_GPU
from benchmarks.meters import Meter, Reading
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples, ratios
from benchmarks.traffic import Traffic

_GIB = 1 << 30
FIRST_TOKEN = Target(at_most=300)
BETWEEN_TOKENS = Target(at_most=1.0)
NO_FAILURE = Target(at_most=0)
#: Of what is free at the start vLLM wants this much to be there, though it is told its sizes.
_FREE_AT_START = 0.8
#: Seconds between two points of a timeline that is written down.
_STEP = 0.25


@dataclass(frozen=True)
class Outcome:
    """What one kind of servers did with the load, round by round."""

    ready: float
    rounds: list[Traffic]
    readings: list[Reading]

    def percentiles(self, name: str, percent: float) -> Samples:
        return Samples(
            "ms", [round_.milliseconds(name).percentile(percent) for round_ in self.rounds]
        )

    def means(self, name: str) -> Samples:
        return Samples("ms", [round_.milliseconds(name).mean for round_ in self.rounds])

    def peak(self, name: str) -> float | None:
        """`gpu` or `held` at its highest under load, in GiB."""
        begin, end = self.rounds[0].start, self.rounds[-1].ended
        read = [getattr(item, name) for item in self.readings if begin <= item.time <= end]
        found = [value for value in read if value is not None]
        return max(found) / _GIB if found else None

    @property
    def timeline(self) -> list[dict[str, Any]]:
        """Memory in MiB from the first request of the last round on, for a plot."""
        points: list[dict[str, Any]] = []
        due = start = self.rounds[-1].start
        for reading in self.readings:
            if reading.time >= due:
                due = reading.time + _STEP
                held = {name: value >> 20 for name, value in reading.held_by.items()}
                gpu = None if reading.gpu is None else reading.gpu >> 20
                points.append({"t": round(reading.time - start, 2), "gpu": gpu, "held": held})
        return points


def plans(kind: str, options: argparse.Namespace, directory: Path) -> list[Any]:
    """(name, engine arguments, variables) of every server of a kind."""
    model = models.find(options.model, directory)
    shared = kind == "shared"
    whole = int(options.kv_gib * _GIB)
    engine: dict[str, Any] = {
        **model.engine_arguments(),
        "max_model_len": options.prompt_tokens + options.output_tokens,
        "enable_prefix_caching": False,
        "enforce_eager": not HAS_GPU,
        "kv_cache_memory_bytes": whole if shared else whole // options.servers,
    }
    if HAS_GPU:
        engine["gpu_memory_utilization"] = round(_FREE_AT_START / options.servers, 3)
    variables = {**model.variables(), **(engines.ELASTIC if shared else engines.VANILLA)}
    if shared:
        variables["KVCACHED_CAPACITY"] = str(whole)
    return [
        (f"model{number}", {**engine, **options.engine}, variables)
        for number in range(options.servers)
    ]


def loads(options: argparse.Namespace, turn: int) -> list[list[float]]:
    """When each server's requests are due."""
    return [
        [
            number * options.apart + moment
            for moment in arrivals.up_and_down(
                options.rate, options.ramp_seconds, seed=100 * turn + number
            )
        ]
        for number in range(options.servers)
    ]


def run(kind: str, options: argparse.Namespace, directory: Path) -> Outcome:
    """Starts one kind of servers, puts the load to them and ends them. Raises EngineFailed."""
    with ExitStack() as stack:
        began = time.time()
        running = servers.start(
            stack,
            plans(kind, options, directory),
            directory / "rows",
            f"{engines.logs_of(options, directory)}/{kind}-",
            options.patience,
            together=kind == "shared" or options.start == "together",
        )
        ready = time.time() - began
        print(f"{kind}: {len(running)} servers ready in {ready:.1f} s", flush=True)
        meter = Meter([server.process.pid for server in running], directory / "rows")
        meter.start()
        stack.callback(meter.stop)
        rounds = [
            traffic.play(
                running,
                loads(options, turn),
                {"prompt_tokens": options.prompt_tokens, "output_tokens": options.output_tokens},
                directory,
                options.patience,
                seed=100 * turn,
            )
            for turn in range(options.rounds)
        ]
        for round_ in rounds:
            if round_.failures:
                print(f"{kind}: {len(round_.failures)} failed, first: {round_.failures[0]}")
        dead = [server for server in running if not server.alive]
        for server in dead:
            print(f"{kind}: {server.name} died:\n{engines.last_lines(server.log)}")
        if dead:
            raise EngineFailed(f"{kind}: {len(dead)} of {len(running)} servers died under load")
        time.sleep(1.5)  # memory goes back; the timeline shows it
        return Outcome(ready, rounds, list(meter.readings))


def add_rows(report: Report, outcomes: dict[str, Outcome]) -> None:
    """Adds what there is: of one kind alone there is no comparison."""

    def compare(name: str, found: dict[str, Samples], target: Target | None = None) -> None:
        if len(found) < 2:
            figure, target = next(iter(found.values())), None
        else:
            figure = ratios(found["shared"], found["split"])
        report.add(Row(name, figure, target, found))

    def absolute(name: str, found: dict[str, Samples], target: Target) -> None:
        if "shared" in found:
            report.add(Row(name, found["shared"], target, found))
        else:
            report.add(Row(name, found["split"], parts=found))

    each = outcomes.items()
    compare("TTFT mean", {kind: found.means("ttft") for kind, found in each})
    compare("TTFT p50", {kind: found.percentiles("ttft", 50) for kind, found in each})
    absolute("TTFT p99", {kind: found.percentiles("ttft", 99) for kind, found in each}, FIRST_TOKEN)
    compare("TPOT mean", {kind: found.means("tpot") for kind, found in each}, BETWEEN_TOKENS)
    compare("TPOT p99", {kind: found.percentiles("tpot", 99) for kind, found in each})
    absolute(
        "failed requests",
        {
            kind: Samples("", [len(round_.failures) for round_ in found.rounds])
            for kind, found in each
        },
        NO_FAILURE,
    )
    compare(
        "requests",
        {kind: Samples("", [len(round_.all) for round_ in found.rounds]) for kind, found in each},
    )
    compare("late p99", {kind: found.percentiles("late", 99) for kind, found in each})
    compare("all servers ready", {kind: Samples("s", [found.ready]) for kind, found in each})
    peaks = {kind: found.peak("gpu") for kind, found in each}
    if all(peak is not None for peak in peaks.values()):
        compare(
            "GPU memory, peak",
            {kind: Samples("GiB", [peak or 0.0]) for kind, peak in peaks.items()},
        )
    held = outcomes["shared"].peak("held") if "shared" in outcomes else None
    if held is not None:
        report.add(Row("KV memory held by all, peak", Samples("GiB", [held])))


def measure(report: Report, options: argparse.Namespace) -> None:
    """Runs both kinds, or the one asked for, and adds every row."""
    report.note(environment=engines.chosen())
    outcomes: dict[str, Outcome] = {}
    shared_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="kvcached-bench-", dir=shared_memory) as name:
        for kind in options.kinds:
            try:
                outcomes[kind] = run(kind, options, Path(name))
            except EngineFailed as failure:
                print(failure, file=sys.stderr)
                report.fail(kind, str(failure).splitlines()[0])
    if not outcomes:
        raise EngineFailed("no kind of servers could be measured")
    add_rows(report, outcomes)
    report.note(
        plots={
            kind: {"ttft": found.rounds[-1].points("ttft"), "memory": found.timeline}
            for kind, found in outcomes.items()
        }
    )


def main() -> int:
    parser = arguments_of(__doc__ or "")
    add = parser.add_argument
    add("--model", default="tiny", help=models.NAMES)
    add("--servers", type=int, default=3)
    add("--kinds", nargs="+", choices=("split", "shared"), default=["split", "shared"])
    add("--kv-gib", type=float, default=0.09, help="KV memory of all servers together")
    add("--rate", type=float, default=4, help="requests/s to one server, at its peak")
    add("--ramp-seconds", type=float, default=30, help="of one server's load, up and down")
    add("--apart", type=float, default=15, help="seconds between two servers' beginnings")
    add("--rounds", type=int, default=1, help="how often the load is repeated")
    add("--prompt-tokens", type=int, default=256)
    add("--output-tokens", type=int, default=256)
    add("--patience", type=float, default=300, help="seconds for servers to start, for a request")
    add(
        "--start",
        choices=("in-turn", "together"),
        default="in-turn",
        help="how the split servers start; those that share always start together",
    )
    add("--engine", type=json.loads, default={}, metavar="JSON", help="more arguments of vllm.LLM")
    engines.add_logs_option(parser)
    options = parser.parse_args()
    if options.quick:
        options.servers, options.ramp_seconds, options.apart = 2, 8, 4
        options.output_tokens = min(options.output_tokens, 64)
    # Told to end, it ends its servers and removes its directory too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report("sharing", options)
    try:
        measure(report, options)
    except EngineFailed as failure:
        print(failure, file=sys.stderr)
        return 2
    return report.finish(
        f"{options.servers} x {options.model}: one device, shared by kvcached or split"
    )


if __name__ == "__main__":
    sys.exit(main())
