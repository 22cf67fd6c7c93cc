"""One engine alone: vLLM with kvcached over vLLM without.

Engines run one after the other, vanilla and elastic in turn, each in new processes: one round to
warm up, then `--rounds` rounds of `--requests` requests of mixed lengths, all handed over at
once, with the same prompts in both. The figure is elastic over vanilla, round by round.

  output tokens/s   of a round
  TTFT              from handing over to the first token, median of a round's requests
  processor time    of all of the engine's processes, in a round; vLLM's threads spin while
                    they wait for each other
  time to ready     from starting the process until the engine can generate
  KV memory         what the pagers hold, over what vanilla vLLM reserves
  resident memory   of the engine's processes: vanilla's too grows only as it is touched
                    where there is no GPU
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.meters import Meter, Reading
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples, ratios

TARGET = Target(at_least=0.98)
#: Seconds for an engine to do everything.
PATIENCE = 3600
#: Host memory for the KV cache, where vLLM runs without a GPU; GiB.
HOST_KV_GIB = "1"
VANILLA = {"ENABLE_KVCACHED": "false"}
ELASTIC = {"ENABLE_KVCACHED": "true", "KVCACHED_REQUIRED": "true"}
_REPOSITORY = Path(__file__).parent.parent


class EngineFailed(RuntimeError):
    """An engine did not do what it was started for; the message has its last lines."""


@dataclass(frozen=True)
class Run:
    """One engine's life."""

    started: float
    report: dict[str, Any]
    readings: list[Reading]

    def _during(self, begin: float, end: float) -> list[Reading]:
        found = [reading for reading in self.readings if begin <= reading.time <= end]
        return found or self.readings[-1:]

    @property
    def busy(self) -> list[Reading]:
        """What was read while it generated, the first round aside."""
        rounds = self.report["rounds"]
        return self._during(rounds[0]["began"], rounds[-1]["ended"])

    @property
    def idle(self) -> list[Reading]:
        """What was read in the last half second of its idle time."""
        return self._during(self.report["idle"] - 0.5, self.report["idle"])

    @property
    def seconds_to_ready(self) -> float:
        return float(self.report["ready"] - self.started)

    def of_rounds(self, name: str, scale: float = 1.0) -> list[float]:
        return [scale * float(turn[name]) for turn in self.report["rounds"]]


def run_engine(order: dict[str, Any], variables: dict[str, str], directory: Path) -> Run:
    """Starts an engine, watches it, and returns when it has ended."""
    rows = directory / "rows"
    rows.mkdir(mode=0o700, exist_ok=True)
    report, log = directory / "report.json", directory / "engine.log"
    report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", HOST_KV_GIB),
        "KVCACHED_SHM_DIR": str(rows),
        **variables,
    }
    command = [
        sys.executable,
        "-m",
        "benchmarks.solo_engine",
        json.dumps({**order, "report": str(report)}),
    ]
    with log.open("w") as out:
        started = time.time()
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=_REPOSITORY
        )
        meter = Meter(process.pid, rows)
        meter.start()
        try:
            status = process.wait(PATIENCE)
        finally:
            meter.stop()
            if process.poll() is None:
                process.terminate()
                process.wait()
    if status != 0 or not report.exists():
        tail = "\n".join(log.read_text().splitlines()[-25:])
        raise EngineFailed(f"the engine ended with status {status}:\n{tail}")
    return Run(started, json.loads(report.read_text()), meter.readings)


def _held(readings: list[Reading]) -> int:
    held = [reading.held for reading in readings if reading.held is not None]
    if not held:
        raise EngineFailed("the elastic engine had no row: it ran vanilla")
    return max(held)


def _mebibytes(values: list[int]) -> Samples:
    return Samples("MiB", [value / (1 << 20) for value in values])


def add_rows(report: Report, elastic: list[Run], vanilla: list[Run]) -> None:
    """Adds the comparison of both, pair by pair."""

    def compare(name: str, ours: Samples, theirs: Samples, target: Target | None = None) -> None:
        figure = ratios(ours, theirs)
        report.add(Row(name, figure, target, {"elastic": ours, "vanilla": theirs}))

    def rounds(runs: list[Run], name: str, unit: str, scale: float = 1.0) -> Samples:
        return Samples(unit, [value for run in runs for value in run.of_rounds(name, scale)])

    speed = "output_tokens_per_second"
    compare("output tokens/s", rounds(elastic, speed, "/s"), rounds(vanilla, speed, "/s"), TARGET)
    compare(
        "TTFT",
        rounds(elastic, "ttft_median", "ms", 1000),
        rounds(vanilla, "ttft_median", "ms", 1000),
    )
    compare(
        "processor time",
        rounds(elastic, "processor_seconds", "s"),
        rounds(vanilla, "processor_seconds", "s"),
    )
    compare(
        "time to ready",
        Samples("s", [run.seconds_to_ready for run in elastic]),
        Samples("s", [run.seconds_to_ready for run in vanilla]),
    )
    reserved = _mebibytes([run.report["kv_bytes"] for run in vanilla])
    compare("KV memory, peak", _mebibytes([_held(run.busy) for run in elastic]), reserved)
    compare("KV memory, idle", _mebibytes([_held(run.idle) for run in elastic]), reserved)
    for name, moment in (("peak", "busy"), ("idle", "idle")):
        for what, attribute in (("resident memory", "resident"), ("GPU memory", "gpu")):
            read = [
                [getattr(reading, attribute) for reading in getattr(run, moment)]
                for run in (*elastic, *vanilla)
            ]
            if any(value is None for values in read for value in values):
                continue
            most = [max(values) for values in read]
            compare(
                f"{what}, {name}",
                _mebibytes(most[: len(elastic)]),
                _mebibytes(most[len(elastic) :]),
            )
    same = [
        mine["tokens"] == other["tokens"]
        for one, two in zip(elastic, vanilla, strict=True)
        for mine, other in zip(one.report["rounds"], two.report["rounds"], strict=True)
    ]
    own = [
        mine["tokens"] == other["tokens"]
        for run in vanilla[1:]
        for mine, other in zip(vanilla[0].report["rounds"], run.report["rounds"], strict=True)
    ]
    print(
        f"rounds with the same tokens: elastic and vanilla {sum(same)} of {len(same)}, "
        f"vanilla and itself {sum(own)} of {len(own)}"
    )
    report.note(
        same_tokens_as_vanilla=same,
        vanilla_same_tokens_as_itself=own,
        runs=[
            {"engine": name, **run.report}
            for name, runs in (("elastic", elastic), ("vanilla", vanilla))
            for run in runs
        ],
    )


def measure(report: Report, options: argparse.Namespace) -> None:
    """Runs the engines and adds every row."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="kvcached-bench-", dir=shared) as name:
        directory = Path(name)
        order = {
            "engine": {
                **models.find(options.model, directory).engine_arguments(),
                "skip_tokenizer_init": True,
                "disable_log_stats": False,
                "max_model_len": options.prompt_tokens + options.output_tokens,
                "seed": 0,
                # Compiling takes minutes on a processor and says little there.
                "enforce_eager": not Path("/dev/nvidiactl").exists(),
                **options.engine,
            },
            "requests": options.requests,
            "rounds": options.rounds,
            "prompt_tokens": options.prompt_tokens,
            "output_tokens": options.output_tokens,
        }
        report.note(order=order)
        runs: dict[str, list[Run]] = {"vanilla": [], "elastic": []}
        for pair in range(options.pairs):
            for engine, variables in (("vanilla", VANILLA), ("elastic", ELASTIC)):
                run = run_engine(order, variables, directory)
                runs[engine].append(run)
                speeds = ", ".join(
                    f"{speed:,.0f}" for speed in run.of_rounds("output_tokens_per_second")
                )
                print(
                    f"pair {pair + 1} of {options.pairs}, {engine}: {speeds} output tokens/s",
                    flush=True,
                )
        add_rows(report, runs["elastic"], runs["vanilla"])


def main() -> int:
    parser = arguments_of(__doc__ or "")
    parser.add_argument(
        "--model",
        default="tiny",
        help="tiny (random weights), smollm2 (the demo's), or vLLM's name",
    )
    parser.add_argument("--pairs", type=int, default=3, help="engines of each kind, in turn")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each engine")
    parser.add_argument("--requests", type=int, default=96, help="requests of a round")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="the longest prompt")
    parser.add_argument("--output-tokens", type=int, default=192, help="the longest output")
    parser.add_argument(
        "--engine",
        type=json.loads,
        default={},
        metavar="JSON",
        help='more arguments of vllm.LLM, such as {"dtype": "float32"}',
    )
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.rounds = 1, min(options.rounds, 2)
        options.requests = min(options.requests, 32)
    # Told to end, it ends its engine and removes its directory too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report("solo", options)
    try:
        measure(report, options)
    except EngineFailed as failure:
        print(failure, file=sys.stderr)
        return 2
    return report.finish(f"{options.model}: vLLM with kvcached over vLLM without")


if __name__ == "__main__":
    sys.exit(main())
