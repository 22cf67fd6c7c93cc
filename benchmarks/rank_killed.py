"""One rank of an engine killed: vLLM with kvcached beside vLLM without, two ranks each.

Both servers run at the same time under the same load; then SIGKILL goes to one worker of each. What
vLLM does then, kvcached must leave alone: both servers end, with the same status. The memory that
the dead rank and the other one had accounted for must be its neighbours' within a second of the end
of each process. When the other rank ends, which stands in a collective, is vLLM's to say.

Every device has such a neighbour, as a pager of another engine would be: somebody has to look
whether the owners of leases live. Before the kill both servers are asked what their ranks talk to
each other with, which kvcached must leave alone, too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import arrivals, communicators, engines, models, scratch, servers, traffic
from benchmarks.engines import EngineFailed
from benchmarks.gpu_memory import HAS_GPU, GpuMemory
from benchmarks.lease_end import End, LeaseEnd, neighbours
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples
from benchmarks.servers import Server
from kvcached import _C

_MIB = 1 << 20
BACK = Target(at_most=1.0)
NONE = Target(at_most=0)
ALIKE = Target(at_least=1)
#: Two servers on the same GPUs: vanilla vLLM would take all of them, and fails to start where
#: somebody else's memory changes while it looks how much is free.
_BESIDE_ANOTHER = {"gpu_memory_utilization": 0.3, "kv_cache_memory_bytes": 8 << 30}
#: Until a server whose rank was killed has ended, in seconds. vLLM gives its workers 5 to end by
#: themselves and 4 more after SIGTERM.
ENDS_WITHIN = 60.0
#: Until a server has a request, in seconds.
BUSY_WITHIN = 20.0
#: Of load before the kill, in seconds, and in all.
BEFORE = 4.0
IN_ALL = 8.0


def start(stack: ExitStack, options: argparse.Namespace, directory: Path) -> tuple[Server, Server]:
    """The vanilla and the elastic server, both ready."""
    model = models.find(options.model, directory)
    engine = {
        **model.engine_arguments(),
        "max_model_len": options.prompt_tokens + options.output_tokens,
        "enforce_eager": True,
        "tensor_parallel_size": 2,
        **(_BESIDE_ANOTHER if HAS_GPU else {}),
        **communicators.ARGUMENTS,
        **options.engine,
    }
    variables = {**model.variables(), **communicators.VARIABLES}
    plans = [
        ("vanilla", engine, {**variables, **engines.VANILLA}),
        ("elastic", engine, {**variables, **engines.ELASTIC}),
    ]
    logs = f"{engines.logs_of(options, directory)}/rank-killed-"
    vanilla, elastic = servers.start(
        stack, plans, directory / "rows", logs, options.patience, together=True
    )
    return vanilla, elastic


def blocks_in_use(rows: Path) -> int:
    """Blocks that the elastic engine's requests have."""
    for path in rows.glob("kvcached_elastic-*.0.row"):
        # The null block is always in use.
        return int(_C.Row.attach(str(path)).describe()["used_blocks"]) - 1
    return 0


def wait_until_busy(both: Sequence[Server]) -> float:
    """Returns how many requests the idler of both servers runs, once it runs one: what an engine
    does without a rank is another thing where the other ranks wait for it in a collective."""
    deadline = time.monotonic() + BUSY_WITHIN
    while True:
        running = min(server.running() for server in both)
        if running > 0 or time.monotonic() > deadline:
            return running
        time.sleep(0.02)


def end_of(server: Server, since: float, found: dict[str, tuple[float, int | None]]) -> None:
    """Notes the seconds until a server has ended by itself, and its status; None where it did not
    within ENDS_WITHIN. It is asked for its health, as an orchestrator does."""
    while time.time() - since < ENDS_WITHIN:
        if server.process.poll() is not None:
            break
        _ = server.alive
        time.sleep(0.05)
    found[server.name] = (time.time() - since, server.process.poll())


def measure(report: Report, options: argparse.Namespace) -> None:
    """Plays it and adds every row."""
    with (
        scratch.directory() as directory,
        ExitStack() as stack,
    ):
        rows = directory / "rows"
        rows.mkdir(mode=0o700)
        stack.enter_context(neighbours("cuda" if HAS_GPU else "host", 2 if HAS_GPU else 1, rows))
        gpus = GpuMemory()
        before = gpus.used()
        both = start(stack, options, directory)
        ready = max(server.seconds_to_ready for server in both)
        print(f"both servers ready in {ready:.1f} s", flush=True)
        ranks = {server.name: communicators.ask(server.url) for server in both}
        add_communicators(report, ranks)
        load = _Load(both, options, directory)
        load.start()
        time.sleep(BEFORE)
        running = wait_until_busy(both)
        busy = blocks_in_use(rows)
        leases = LeaseEnd(rows, {int(told["rank"]): int(told["pid"]) for told in ranks["vanilla"]})
        if not leases.first:
            raise EngineFailed("the elastic engine has no lease")
        killed = time.time()
        for server in both:
            os.kill(int(ranks[server.name][options.rank]["pid"]), signal.SIGKILL)
        ended: dict[str, tuple[float, int | None]] = {}
        watchers = [
            threading.Thread(target=end_of, args=(server, killed, ended), daemon=True)
            for server in both
        ]
        for watcher in watchers:
            watcher.start()
        back = leases.wait(killed, ENDS_WITHIN)
        for watcher in watchers:
            watcher.join(ENDS_WITHIN)
        load.join(ENDS_WITHIN)
        report.add(Row("requests of the idler server then", Samples("", [running]), ALIKE))
        report.add(Row("blocks in use when the rank was killed", Samples("", [busy]), ALIKE))
        add_end(report, ended, back, options.rank)
        for server in both:
            if ended.get(server.name, (0, None))[1] is None:
                print(f"{server.name} did not end; its log ends:\n{engines.last_lines(server.log)}")
        left = [path.name for path in rows.glob("*.row") if "neighbour" not in path.name]
        report.add(Row("rows left behind", Samples("", [len(left)]), NONE))
        for device, (then, now) in enumerate(zip(before, gpus.used(), strict=True)):
            report.add(
                Row(
                    f"GPU {device}: memory in use beyond before the start, at the end",
                    Samples("MiB", [(now - then) / _MIB]),
                )
            )
        report.note(ranks=ranks, requests=load.outcome)


class _Load(threading.Thread):
    """Requests to both, of which those after the kill fail."""

    def __init__(
        self, both: Sequence[Server], options: argparse.Namespace, directory: Path
    ) -> None:
        super().__init__(daemon=True)
        self._arguments: tuple[Any, ...] = (
            both,
            [arrivals.steady(options.rate, IN_ALL, seed=1) for _ in both],
            {"prompt_tokens": options.prompt_tokens, "output_tokens": options.output_tokens},
            directory,
            30.0,
        )
        self.outcome: dict[str, Any] = {}

    def run(self) -> None:
        try:
            load = traffic.play(*self._arguments)
        except EngineFailed as failure:
            self.outcome = {"problem": str(failure).splitlines()[0]}
            return
        self.outcome = {
            name: {
                "answered": sum(not answer["error"] for answer in answers),
                "failed": sum(bool(answer["error"]) for answer in answers),
                "errors": sorted(
                    {str(answer["error"])[:80] for answer in answers if answer["error"]}
                ),
            }
            for name, answers in load.answers.items()
        }


def add_communicators(report: Report, ranks: dict[str, list[dict[str, Any]]]) -> None:
    """Adds whether the ranks of both engines have the same communicators and variables."""
    compared = {
        name: [{key: told[key] for key in ("rank", "groups", "variables")} for told in found]
        for name, found in ranks.items()
    }
    same = compared["vanilla"] == compared["elastic"]
    for name, found in compared.items() if not same else [("both", compared["elastic"])]:
        print(f"{name}: {json.dumps(found[0]['groups']['tensor'])}")
    report.add(Row("ranks talk as vanilla's do", Samples("", [float(same)]), ALIKE))


def add_end(
    report: Report, ended: dict[str, tuple[float, int | None]], back: dict[int, End], dead: int
) -> None:
    """Adds how both ended, and when the leases were back."""
    (ours, our_status), (theirs, their_status) = (
        ended.get(name, (ENDS_WITHIN, None)) for name in ("elastic", "vanilla")
    )
    print(f"status: vanilla {their_status}, elastic {our_status}")
    parts = {"elastic": Samples("s", [ours]), "vanilla": Samples("s", [theirs])}
    alike = our_status == their_status
    report.add(Row("ended with vanilla's status", Samples("", [float(alike)]), ALIKE))
    report.add(Row("ended after", Samples("s", [ours]), parts=parts))
    for rank, end in sorted(back.items()):
        which = "killed" if rank == dead else "other"
        ends = {"elastic": Samples("s", [end.process]), "vanilla": Samples("s", [end.beside])}
        report.add(Row(f"the {which} rank's process ended after", ends["elastic"], None, ends))
        # Memory that a process may still write to is nobody else's.
        late = Samples("s", [end.lease - end.process])
        report.add(Row(f"the {which} rank's lease back after its process ended", late, BACK))


def main() -> int:
    parser = arguments_of(__doc__ or "")
    add = parser.add_argument
    add("--model", default="tiny", help=models.NAMES)
    add("--rank", type=int, choices=(0, 1), default=1, help="which one is killed")
    add("--rate", type=float, default=4, help="requests/s to each server")
    add("--prompt-tokens", type=int, default=256)
    add("--output-tokens", type=int, default=256)
    add("--patience", type=float, default=150, help="seconds for both servers to start")
    add("--engine", type=json.loads, default={}, metavar="JSON", help="more arguments of vllm.LLM")
    engines.add_logs_option(parser)
    options = parser.parse_args()
    # Told to end, it ends its servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report("rank_killed", options)
    report.note(environment=engines.chosen())
    try:
        measure(report, options)
    except EngineFailed as failure:
        print(failure, file=sys.stderr)
        return 2
    return report.finish(f"{options.model}: one of two ranks killed")


if __name__ == "__main__":
    sys.exit(main())
