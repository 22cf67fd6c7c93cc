"""Four engines on two GPUs, two on each, started at the same moment.

Once without KVCACHED_IPC_NAME, so that nothing but vLLM's own instance id tells them apart, and
once with a name for each. Under load and at rest: does every one serve, has each its own lease and
row, and does each device's ledger count exactly what the pagers on that device hold?

Without a GPU all four are on this machine's memory, which is one device.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import arrivals, engines, models, scratch, servers, traffic
from benchmarks.engines import EngineFailed
from benchmarks.gpu_memory import HAS_GPU
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples
from benchmarks.servers import Server
from benchmarks.traffic import Traffic
from kvcached import _C, inventory

NONE = Target(at_most=0)
SAME_MOMENT = Target(at_most=1.0)
#: Between two looks at the ledgers, in seconds.
LOOK = 0.05
#: Until an idle engine holds nothing it does not keep, in seconds.
REST = 2.0


@dataclass
class Books(threading.Thread):
    """Compares ledgers with pagers until stop()."""

    rows: Path
    looks: int = 0
    """How often nothing moved while one look was taken."""
    differing: int = 0
    """How many of those found a ledger that counted something else than the rows say."""
    beyond: int = 0
    """How often a ledger counted more than its device's capacity."""
    _done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        while not self._done.wait(LOOK):
            before = held_by_pagers(self.rows)
            counted = {path: _snapshot(path) for path in before}
            if before != held_by_pagers(self.rows):
                continue
            self.looks += 1
            self.differing += any(counted[path][0] != held for path, held in before.items())
            self.beyond += any(used > capacity for used, capacity in counted.values())

    def stop(self) -> None:
        self._done.set()
        self.join()


def _snapshot(ledger: str) -> tuple[int, int]:
    used, capacity, _ = _C.Ledger.open(ledger).snapshot()
    return used, capacity


def held_by_pagers(rows: Path) -> Counter[str]:
    """Bytes that the pagers hold, by the ledger that they account to."""
    held: Counter[str] = Counter()
    for path in rows.glob("*.row"):
        try:
            facts = _C.Row.attach(str(path)).describe()
        except _C.Error:
            continue  # just gone
        if facts["ledger"]:
            held[facts["ledger"]] += facts["held_bytes"]
    return held


def start(
    stack: ExitStack, options: argparse.Namespace, named: bool, directory: Path
) -> tuple[list[Server], Path]:
    """The servers, all ready, and the directory of their rows."""
    model = models.find(options.model, directory)
    engine = {
        **model.engine_arguments(),
        "max_model_len": options.prompt_tokens + options.output_tokens,
        "enforce_eager": True,
        **options.engine,
    }
    label = "named" if named else "nameless"
    rows = directory / f"rows-{label}"
    plans = []
    for number in range(options.servers):
        variables = {**model.variables(), **engines.ELASTIC}
        if not named:
            variables["KVCACHED_IPC_NAME"] = ""
        if HAS_GPU:
            variables["CUDA_VISIBLE_DEVICES"] = str(number * options.gpus // options.servers)
        plans.append((f"{label}{number}", engine, variables))
    logs = f"{engines.logs_of(options, directory)}/instances-"
    return servers.start(stack, plans, rows, logs, options.patience, together=True), rows


def measure(report: Report, options: argparse.Namespace, named: bool, directory: Path) -> None:
    """Plays one kind and adds its rows."""
    with ExitStack() as stack:
        running, rows = start(stack, options, named, directory)
        ready = max(server.seconds_to_ready for server in running)
        print(f"{len(running)} servers ready in {ready:.1f} s", flush=True)
        books = Books(rows)
        books.start()
        load = traffic.play(
            running,
            [
                arrivals.steady(options.rate, options.seconds, seed=seed)
                for seed in range(len(running))
            ],
            {"prompt_tokens": options.prompt_tokens, "output_tokens": options.output_tokens},
            directory,
            options.patience,
        )
        time.sleep(REST)
        books.stop()
        for error in load.failures[:3]:
            print(f"failed: {error}")
        add_rows(report, "named" if named else "no name", running, rows, load, books)


def add_rows(
    report: Report, label: str, running: list[Server], rows: Path, load: Traffic, books: Books
) -> None:
    """Adds what the servers did, and what stands in the ledgers at rest."""

    def add(name: str, value: float, target: Target | None = None, unit: str = "") -> None:
        report.add(Row(f"{label}: {name}", Samples(unit, [value]), target))

    moments = [server.started for server in running]
    add("from the first start to the last", max(moments) - min(moments), SAME_MOMENT, "s")
    add("servers that died", sum(not server.alive for server in running), NONE)
    add("requests", len(load.all))
    add("failed requests", len(load.failures), NONE)
    add("servers that answered nothing", len(running) - _answering(load), NONE)
    report.add(Row(f"{label}: TTFT", load.milliseconds("ttft")))
    devices, problems = inventory.devices(rows)
    for problem in problems:
        print(f"{problem.path}: {problem.reason}")
    add("ledgers that cannot be read", len(problems), NONE)
    leases = [lease for device in devices for lease in device.leases]
    found = inventory.instances(devices)
    for device in devices:
        names = ", ".join(f"{lease.group}/{lease.instance}" for lease in device.leases)
        print(f"{label}: {device.id}: {device.used >> 20} MiB of {len(device.leases)}: {names}")
    wanted = len(running)
    add("leases missing or too many", abs(len(leases) - wanted), NONE)
    add("instances missing or too many", abs(len(found) - wanted), NONE)
    add("rows that two leases share", wanted - len({lease.row for lease in leases}), NONE)
    uneven = max(len(device.leases) for device in devices) * len(devices) - wanted
    add("leases on the wrong device", uneven, NONE)
    held = held_by_pagers(rows)
    off = sum(abs(device.used - held[device.path]) for device in devices)
    add("at rest: bytes counted and not held, or held and not counted", off, NONE, "B")
    mine = sum(abs(device.used - sum(lease.held for lease in device.leases)) for device in devices)
    add("at rest: bytes counted beyond the leases' sum", mine, NONE, "B")
    add("looks at the ledgers while nothing moved", books.looks, Target(at_least=1))
    # A lease is charged before its pager takes memory, and the row says so after: not wrong.
    add("of them with another sum than the pagers'", books.differing)
    add("looks with more than the device's capacity", books.beyond, NONE)


def _answering(load: Traffic) -> int:
    return sum(any(not answer["error"] for answer in seen) for seen in load.answers.values())


def main() -> int:
    parser = arguments_of(__doc__ or "")
    add = parser.add_argument
    add("--model", default="tiny", help=models.NAMES)
    add("--servers", type=int, default=4)
    add("--gpus", type=int, default=2, help="over which the servers are spread")
    add("--seconds", type=float, default=10, help="of load")
    add("--rate", type=float, default=2, help="requests/s to each server")
    add("--prompt-tokens", type=int, default=256)
    add("--output-tokens", type=int, default=64)
    add("--names", choices=("both", "none", "all"), default="both", help="which servers have one")
    add("--patience", type=float, default=150, help="seconds for servers to start, for a request")
    add("--engine", type=json.loads, default={}, metavar="JSON", help="more arguments of vllm.LLM")
    engines.add_logs_option(parser)
    options = parser.parse_args()
    if options.quick:
        options.seconds = min(options.seconds, 5)
    # Told to end, it ends its servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report("instances", options)
    report.note(environment=engines.chosen())
    kinds = {"both": (False, True), "none": (False,), "all": (True,)}[options.names]
    with scratch.directory() as directory:
        for named in kinds:
            try:
                measure(report, options, named, directory)
            except EngineFailed as failure:
                print(failure, file=sys.stderr)
                what = "with names" if named else "without names"
                report.fail(what, str(failure).splitlines()[0])
    return report.finish(f"{options.servers} x {options.model} started together")


if __name__ == "__main__":
    sys.exit(main())
