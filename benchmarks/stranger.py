"""Engines beside a stranger: somebody who takes and frees memory of the same device at random and
keeps no account with kvcached.

Servers with kvcached, under a steady load for `--seconds`; then what they did: did one die, did a
request fail, how long did the slowest first token take, how often was growth refused. Where an
engine has several ranks (`--engine '{"tensor_parallel_size": 2}'`) a stranger on one of their GPUs
must not split them: at rest, every rank has the same extents.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import arrivals, engines, models, rank_agreement, scratch, servers, traffic
from benchmarks.engines import EngineFailed
from benchmarks.gpu_memory import HAS_GPU
from benchmarks.meters import Meter, Reading
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples
from benchmarks.traffic import Traffic

_GIB = 1 << 30
NONE = Target(at_most=0)
#: A stranger that nobody notices shows nothing.
BUSY = Target(at_least=1.0)


@dataclass(frozen=True)
class Stranger:
    """What the stranger did: {"time", "held", "refused"} at every change."""

    changes: list[dict[str, Any]]

    @property
    def peak(self) -> int:
        return max((int(change["held"]) for change in self.changes), default=0)

    @property
    def refused(self) -> int:
        return sum(change["refused"] is not None for change in self.changes)


def start_stranger(options: argparse.Namespace, directory: Path) -> tuple[Any, Path]:
    """The stranger's process and the file it writes."""
    order = {
        "gpu": HAS_GPU,
        "device": options.gpu,
        "fill": options.fill,
        "seconds": options.fill_seconds,
        "most": int(options.stranger_gib * _GIB),
        "piece": int(options.piece_gib * _GIB),
        "headroom": int(options.headroom_gib * _GIB),
        "seed": 0,
    }
    written = directory / "stranger.out"
    command = [sys.executable, "-m", "benchmarks.neighbour", json.dumps(order)]
    return engines.start(command, os.environ, written), written


def end_stranger(process: subprocess.Popen[bytes], written: Path) -> Stranger:
    """Raises EngineFailed where it had ended by itself: then nobody was disturbed."""
    ended = process.poll()
    engines.end_group(process)
    if ended is not None:
        raise EngineFailed(f"the stranger ended with {ended}:\n{engines.last_lines(written)}")
    lines = written.read_text().splitlines()
    return Stranger([json.loads(line) for line in lines if line.endswith("}")])


def measure(report: Report, options: argparse.Namespace) -> None:
    """Plays it and adds every row."""
    report.note(environment=engines.chosen())
    with (
        scratch.directory() as directory,
        ExitStack() as stack,
    ):
        model = models.find(options.model, directory)
        engine = {
            **model.engine_arguments(),
            "max_model_len": options.prompt_tokens + options.output_tokens,
            "enforce_eager": not HAS_GPU,
            **options.engine,
        }
        variables = {**model.variables(), **engines.ELASTIC}
        running = servers.start(
            stack,
            [(f"model{number}", engine, variables) for number in range(options.servers)],
            directory / "rows",
            f"{engines.logs_of(options, directory)}/stranger-",
            options.patience,
            together=True,
        )
        ready = max(server.seconds_to_ready for server in running)
        print(f"{len(running)} servers ready in {ready:.1f} s", flush=True)
        meter = Meter([server.process.pid for server in running], directory / "rows")
        meter.start()
        stack.callback(meter.stop)
        process, written = start_stranger(options, directory)
        stack.callback(engines.end_group, process)
        load = traffic.play(
            running,
            [
                arrivals.steady(options.rate, options.seconds, seed=number)
                for number in range(options.servers)
            ],
            {"prompt_tokens": options.prompt_tokens, "output_tokens": options.output_tokens},
            directory,
            options.patience,
        )
        stranger = end_stranger(process, written)
        dead = [server for server in running if not server.alive]
        for server in dead:
            print(f"{server.name} died; its log ends:\n{engines.last_lines(server.log)}")
        for error in load.failures[:3]:
            print(f"failed: {error}")
        add_rows(report, load, len(dead), stranger, list(meter.readings))
        ranks = rank_agreement.settled(directory / "rows")
        if max((len(engine.held) for engine in ranks), default=0) > 1:
            rank_agreement.add_rows(report, ranks)


def add_rows(
    report: Report, load: Traffic, dead: int, stranger: Stranger, readings: list[Reading]
) -> None:
    """Adds what happened to the requests, to growth, and what the stranger did."""
    counters = readings[-1].counters
    report.add(Row("engines that died", Samples("", [dead]), NONE))
    report.add(Row("requests", Samples("", [len(load.all)])))
    report.add(Row("failed requests", Samples("", [len(load.failures)]), NONE))
    ttft = load.milliseconds("ttft")
    report.add(Row("TTFT", ttft))
    report.add(Row("TTFT, the slowest", Samples("ms", [max(ttft.values)])))
    report.add(Row("TPOT", load.milliseconds("tpot")))
    report.add(Row("late", load.milliseconds("late")))
    report.add(Row("growth refused", Samples("", [counters.get("denials", 0)])))
    report.add(Row("extents committed", Samples("", [counters.get("commits", 0)])))
    longest = counters.get("longest_wait_ns", 0) / 1e6
    report.add(Row("longest wait of a step", Samples("ms", [longest])))
    held = [reading.held for reading in readings if reading.held is not None]
    report.add(Row("KV memory of the engines, peak", Samples("GiB", [max(held) / _GIB])))
    for device in range(len(readings[-1].gpus)):
        peak = max(reading.gpus[device] for reading in readings)
        report.add(Row(f"GPU {device} memory, peak", Samples("GiB", [peak / _GIB])))
    report.add(Row("stranger: memory, peak", Samples("GiB", [stranger.peak / _GIB])))
    report.add(Row("stranger: changes", Samples("", [len(stranger.changes)]), BUSY))
    report.add(Row("stranger: refused", Samples("", [stranger.refused])))
    report.note(
        errors=load.failures[:20],
        stranger=[
            [round(change["time"] - load.start, 2), change["held"] >> 20]
            for change in stranger.changes
        ],
    )


def main() -> int:
    parser = arguments_of(__doc__ or "")
    add = parser.add_argument
    add("--model", default="tiny", help=models.NAMES)
    add("--servers", type=int, default=2)
    add("--seconds", type=float, default=60, help="of load")
    add("--rate", type=float, default=1, help="requests/s to each server")
    add("--prompt-tokens", type=int, default=256)
    add("--output-tokens", type=int, default=128)
    add("--stranger-gib", type=float, default=2, help="most that the stranger takes")
    add("--piece-gib", type=float, default=0.5, help="most that it takes at once")
    add("--headroom-gib", type=float, default=2, help="what it leaves free")
    add("--gpu", type=int, default=0, help="whose memory the stranger takes, by CUDA's number")
    add("--fill", action="store_true", help="the stranger takes all there is, in turns")
    add("--fill-seconds", type=float, default=3, help="of each turn")
    add("--patience", type=float, default=300, help="seconds for servers to start, for a request")
    add("--engine", type=json.loads, default={}, metavar="JSON", help="more arguments of vllm.LLM")
    engines.add_logs_option(parser)
    options = parser.parse_args()
    if options.quick:
        options.seconds = min(options.seconds, 10)
    # Told to end, it ends its servers and the stranger too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report("stranger", options)
    try:
        measure(report, options)
    except EngineFailed as failure:
        print(failure, file=sys.stderr)
        return 2
    return report.finish(f"{options.servers} x {options.model} beside a stranger")


if __name__ == "__main__":
    sys.exit(main())
