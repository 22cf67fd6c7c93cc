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
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import arrivals, engines, models, scratch, servers, sharing_outcome, traffic
from benchmarks.engines import EngineFailed
from benchmarks.gpu_memory import HAS_GPU
from benchmarks.meters import Meter
from benchmarks.report import Report, arguments_of
from benchmarks.sharing_outcome import Outcome

_GIB = 1 << 30
#: Of what is free at the start vLLM wants this much to be there, though it is told its sizes.
_FREE_AT_START = 0.8


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


def measure(report: Report, options: argparse.Namespace) -> None:
    """Runs both kinds, or the one asked for, and adds every row."""
    report.note(environment=engines.chosen())
    outcomes: dict[str, Outcome] = {}
    with scratch.directory() as directory:
        for kind in options.kinds:
            try:
                outcomes[kind] = run(kind, options, directory)
            except EngineFailed as failure:
                print(failure, file=sys.stderr)
                report.fail(kind, str(failure).splitlines()[0])
    if not outcomes:
        raise EngineFailed("no kind of servers could be measured")
    sharing_outcome.add_rows(report, outcomes)
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
