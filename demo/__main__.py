"""`python -m demo`: two set-ups, the same requests, a picture and a verdict.

`--engine` chooses who serves: vllm, sglang, or one with each (mixed). Everything after `--` goes to
all servers, for example `-- --tensor-parallel-size 2`.
Exit status: 0 when every answer was the same and the claim was shown; 1 otherwise; 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from rich.console import Console

from demo import chart, kvtop, report
from demo.budget import Budget, budget_for
from demo.choices import CHOICES, VLLM
from demo.engines import engines_for, with_names
from demo.machine import this_machine
from demo.model import ModelUnavailable, cached_model, model_path
from demo.outcome import Outcome
from demo.plan import FULL, QUICK
from demo.run import NotElastic, Setting, run_shared, run_static
from demo.screen import Screen
from demo.server import ServerFailed
from demo.sglang_processor import reason_against_sglang
from demo.sizes import in_binary_units
from demo.workload import RequestFailed

INTERRUPTED = 130


def main() -> int:
    options = _options()
    console = Console()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _as_interrupt)
    try:
        return _show(console, options)
    except KeyboardInterrupt:
        console.print("stopped; no server is left running")
        return INTERRUPTED
    except (ModelUnavailable, NotElastic, RequestFailed, ServerFailed) as reason:
        _fail(console, f"{reason}\nall logs: {options.logs}")
        return 1


def _show(console: Console, options: argparse.Namespace) -> int:
    model = _model(console, options.model)
    machine = this_machine()
    plan = with_names(QUICK if options.quick else FULL, options.engine)
    try:
        budget = budget_for(model, plan)
    except OSError as reason:
        raise ModelUnavailable(f"{model} cannot be read: {reason}") from None
    engines = engines_for(options.engine, machine)
    flags = tuple(options.flags)
    setting = Setting(machine, engines, model, flags, plan, budget, options.logs)
    _explain(console, setting)
    with Screen(console) as screen:
        static = run_static(setting, screen)
        shared, frame = run_shared(setting, screen)
    if frame is not None:
        console.print("\n`kvctl kvtop --once` while the second model was busy:\n")
        console.print(frame, soft_wrap=True)
        kvtop.save(frame, options.logs / "kvtop.svg")
    title = f"Two servers of {Path(model).name}, the same requests"
    titles = chart.Titles(title, setting.label, machine.measured)
    chart.draw(static, shared, budget, titles, options.chart)
    console.print()
    console.print(report.comparison(static, shared, budget, setting.label))
    _say(console, f"memory is: {machine.measured}; over time: {options.chart}")
    # A short plan, another model or other flags may well show something else.
    ours = not (options.quick or options.model or options.flags)
    return _verdict(console, static, shared, claim=report.CLAIM if ours else 0.0)


def _model(console: Console, wanted: str | None) -> str:
    if wanted is not None:
        return str(Path(wanted).absolute()) if Path(wanted).exists() else wanted
    if cached_model() is None:
        _say(console, "preparing SmolLM2-135M-Instruct, once (about 30 s)")
    return str(model_path())


def _explain(console: Console, setting: Setting) -> None:
    budget: Budget = setting.budget
    first, second = setting.plan.models
    # SGLang counts tokens, not blocks.
    takes, most = ("takes", "") if setting.label == "vLLM" else ("takes at most", "such ")
    _say(
        console,
        f"{first} and {second}: two servers of {Path(setting.model).name}, by {setting.label}. "
        f"A burst sends {budget.conversations} requests to one of them; each {takes} a block of "
        f"{in_binary_units(budget.block_bytes)}.\n"
        f"budget for both: {in_binary_units(budget.shared)}, 1.3 times what one needs at its peak "
        f"({in_binary_units(budget.one_peak)}). Half of it holds {budget.conversations_in_half} "
        f"{most}requests at a time.",
    )


def _verdict(console: Console, static: Outcome, shared: Outcome, claim: float) -> int:
    count = len(static.answers)
    different = report.differing(static, shared)
    for pair in different:
        _say(console, report.describe_difference(*pair))
    equal = count - len(different)
    if different:
        _fail(console, f"{equal} of {count} answers are equal")
        return 1
    console.print(f"{equal} of {count} answers are equal, word for word", style="green")
    ratio = static.p99_wait / shared.p99_wait
    line = f"time to first token, p99: {ratio:.1f} times as long where the budget is split"
    if ratio < claim:
        _fail(console, f"{line}; at least {claim:.0f} times was to be shown")
        return 1
    console.print(line, style="green", highlight=False)
    return 0


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


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
        description="Two models on one memory budget: shared by kvcached, and split in halves.",
        epilog="Everything after -- goes to all servers.",
    )
    parser.add_argument(
        "--engine", choices=CHOICES, default=VLLM, help="who serves (default: vllm)"
    )
    parser.add_argument("--model", help="a model's name or folder (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--quick", action="store_true", help="fewer requests, shorter answers")
    parser.add_argument("--chart", type=Path, default=Path("demo.png"), help="where the chart goes")
    parser.add_argument(
        "--logs", type=Path, default=Path("build/demo"), help="the servers' logs, and kvtop.svg"
    )
    parser.add_argument("flags", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if len(set(CHOICES[options.engine])) > 1 and options.flags:
        parser.error("flags for the servers need one engine: they do not have the same ones")
    if options.engine != VLLM and (reason := reason_against_sglang()):
        parser.error(reason)
    return options


if __name__ == "__main__":
    sys.exit(main())
