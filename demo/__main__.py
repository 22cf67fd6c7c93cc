"""`python -m demo`: two servers, the same requests, a picture and a verdict.

Everything after `--` goes to both servers, for example `-- --tensor-parallel-size 2`.
Exit status: 0 when kvcached was at work and every answer was the same; 1 otherwise; 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from rich.console import Console

from demo import chart, report
from demo.machine import COMMON_FLAGS, this_machine
from demo.model import ModelUnavailable, cached_model, model_path
from demo.plan import FULL, QUICK
from demo.run import NotElastic, Setting, Turn, run_elastic, run_vanilla
from demo.screen import Screen
from demo.server import ServerFailed
from demo.workload import RequestFailed

INTERRUPTED = 130


def main() -> int:
    options = _options()
    console = Console()
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        return _show(console, options)
    except KeyboardInterrupt:
        console.print("stopped; no server is left running")
        return INTERRUPTED
    except (ModelUnavailable, NotElastic, RequestFailed, ServerFailed) as reason:
        _fail(console, str(reason))
        return 1


def _show(console: Console, options: argparse.Namespace) -> int:
    model = options.model or _demo_model(console)
    machine = this_machine()
    setting = Setting(
        machine=machine,
        model=model,
        flags=(*COMMON_FLAGS, *options.vllm),
        plan=QUICK if options.quick else FULL,
        logs=options.logs,
    )
    with Screen(console) as screen:
        vanilla = run_vanilla(setting, screen)
        elastic = run_elastic(setting, screen, vanilla)
    chart.draw(vanilla, elastic, machine.measured, Path(model).name, options.chart)
    console.print(report.comparison(vanilla, elastic))
    for line in (
        f"memory is: {machine.measured}; over time: {options.chart}",
        f"what stays with kvcached after load: {machine.stays}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return _verdict(console, vanilla, elastic)


def _demo_model(console: Console) -> str:
    if cached_model() is None:
        console.print("preparing SmolLM2-135M-Instruct, once (about 30 s)", highlight=False)
    return str(model_path())


def _verdict(console: Console, vanilla: Turn, elastic: Turn) -> int:
    different = report.differing(vanilla, elastic)
    for pair in different:
        console.print(report.describe_difference(*pair), markup=False, highlight=False)
    if different:
        _fail(console, f"{len(different)} of {len(vanilla.answers)} answers differ")
        return 1
    console.print("every answer is the same, word for word", style="green")
    return 0


def _fail(console: Console, reason: str) -> None:
    # Unwrapped: it may quote a log and name files, which a reader wants to copy.
    console.print(
        f"demo failed: {reason}", style="red", markup=False, highlight=False, soft_wrap=True
    )


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Compare vLLM with and without kvcached's elastic KV cache.",
        epilog="Everything after -- goes to both servers.",
    )
    parser.add_argument("--model", help="a model's name or folder (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--quick", action="store_true", help="a quarter of the requests")
    parser.add_argument("--chart", type=Path, default=Path("demo.png"), help="where the chart goes")
    parser.add_argument("--logs", type=Path, default=Path("build/demo"), help="the servers' logs")
    parser.add_argument("vllm", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
