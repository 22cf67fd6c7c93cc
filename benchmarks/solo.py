"""One engine alone: vLLM or SGLang (`--serving`) with kvcached over the same without.

Vanilla and elastic get the same prompts, each in new processes: one after the other, or, with
`--side-by-side`, both alive and taking turns, phase by phase, so that what is compared is seconds
and not minutes apart. Each is started, left alone for a second, and then plays

  a ramp       `--ramp` sequences that join one by one over `--ramp-seconds` (0: none)
  bursts       a round to warm up, then `--rounds` rounds of `--requests` requests at once
  steady load  `--steady-rounds` times `--steady-seconds` of `--rate` requests/s (0: none)

The figures are elastic over vanilla, of the same round of the same pair; side by side, of the same
two rounds, in which each of them went first once.

  output tokens/s   of a burst
  TTFT              to the first token, from when the request was due; of a burst it is queueing
  TPOT              between tokens after the first, on average over one answer
  processor time    of all of the engine's processes, in a burst; vLLM's threads spin while
                    they wait for each other
  time to ready     from starting the process until the engine can generate
  KV memory         what the pagers hold, over what vanilla vLLM reserves
  resident memory   of the engine's processes: vanilla's too grows only as it is touched
                    where there is no GPU
  GPU memory        in use on the device, by whomever; not of engines side by side
  growth            what steps waited for memory, from the pagers' counters
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import engines, models, scratch, sglang_arguments, solo_memory, solo_speed
from benchmarks.engines import EngineFailed
from benchmarks.gpu_memory import HAS_GPU
from benchmarks.report import Report, arguments_of
from benchmarks.solo_process import PROGRAMS, EngineProcess, may_end_after, phases_of
from benchmarks.solo_run import Run

_NAMES = {"vllm": "vLLM", "sglang": "SGLang"}
_KINDS = {"vanilla": engines.VANILLA, "elastic": engines.ELASTIC}


def order_of(options: argparse.Namespace, model: models.Model) -> dict[str, Any]:
    """What an engine is told to be and to do."""
    longest = max(options.output_tokens, options.ramp_tokens if options.ramp else 0)
    tokens = options.prompt_tokens + longest
    if options.serving == "sglang":
        engine = sglang_arguments.of(model, tokens)
    else:
        engine = {
            **model.engine_arguments(),
            "max_model_len": tokens,
            "seed": 0,
            # Compiling takes minutes on a processor and says little there.
            "enforce_eager": not HAS_GPU,
        }
    return {
        "engine": {**engine, **options.engine},
        **{
            name: getattr(options, name)
            for name in (
                "requests",
                "rounds",
                "prompt_tokens",
                "output_tokens",
                "rate",
                "steady_seconds",
                "steady_rounds",
                "ramp",
                "ramp_seconds",
                "ramp_tokens",
            )
        },
        "mixed": options.lengths == "mixed",
    }


def run_pair(
    pair: int,
    order: dict[str, Any],
    model: models.Model,
    options: argparse.Namespace,
    where: Path,
) -> dict[str, Run]:
    """A vanilla engine and an elastic one. With no time left, engines side by side play no more
    than what says something. Raises EngineFailed."""
    logs = engines.logs_of(options, where)
    # Which comes first changes, so that a machine that gets slower favours neither.
    kinds = list(_KINDS) if pair % 2 == 0 else list(_KINDS)[::-1]
    runs: dict[str, Run] = {}
    with ExitStack() as stack:
        started: list[EngineProcess] = []
        for kind in kinds:
            engine = stack.enter_context(
                EngineProcess(
                    options.serving,
                    order,
                    {**model.variables(), **_KINDS[kind]},
                    where / kind,
                    logs / f"solo-{kind}-{pair + 1}.log",
                    options.patience,
                )
            )
            engine.wait_until_ready()
            started.append(engine)
            if not options.side_by_side:
                for _ in range(phases_of(order)):
                    engine.play()
                runs[kind] = engine.finish()
        if options.side_by_side:
            for phase in range(phases_of(order)):
                if not engines.seconds_left(options) and may_end_after(order, phase):
                    for engine in started:
                        engine.skip()
                    break
                for engine in started if phase % 2 == 0 else started[::-1]:
                    engine.play()
            runs = {kind: engine.finish() for kind, engine in zip(kinds, started, strict=True)}
    for kind, run in runs.items():
        print(f"pair {pair + 1} of {options.pairs}, {kind}: {run}", flush=True)
    return runs


def measure(report: Report, options: argparse.Namespace) -> None:
    """Runs the engines and adds every row."""
    with scratch.directory() as directory:
        model = models.find(options.model, directory)
        order = order_of(options, model)
        report.note(order=order, environment=engines.chosen())
        pairs: list[dict[str, Run]] = []
        try:
            pairs.extend(
                run_pair(pair, order, model, options, directory)
                for pair in range(options.pairs)
                if pair == 0 or engines.seconds_left(options)
            )
        except EngineFailed as failure:
            if not pairs:
                raise
            # What was measured before is not thrown away, and the failure is in the result.
            print(failure, file=sys.stderr)
            report.fail("the pairs after these", str(failure).splitlines()[0])
    elastic, vanilla = ([pair[kind] for pair in pairs] for kind in ("elastic", "vanilla"))
    solo_speed.add_rows(report, elastic, vanilla, options.side_by_side)
    solo_memory.add_rows(report, elastic, vanilla, alone=not options.side_by_side)
    report.note(
        runs=[
            {"engine": kind, **run.report, "memory": run.timeline, "phases": run.phases}
            for kind, runs in (("vanilla", vanilla), ("elastic", elastic))
            for run in runs
        ]
    )


def _told_to_end(*_: object) -> None:
    raise EngineFailed("told to end before the last pair")


def main() -> int:
    parser = arguments_of(__doc__ or "")
    add = parser.add_argument
    add("--serving", choices=tuple(PROGRAMS), default="vllm")
    add("--model", default="tiny", help=models.NAMES)
    add("--pairs", type=int, default=3, help="engines of each kind, in turn")
    add("--rounds", type=int, default=6, help="measured bursts of each engine")
    add("--requests", type=int, default=96, help="requests of a burst")
    add("--prompt-tokens", type=int, default=512, help="the longest prompt")
    add("--output-tokens", type=int, default=192, help="the longest output")
    add("--lengths", choices=("mixed", "longest"), default="mixed", help="of prompts and outputs")
    add("--rate", type=float, default=0, help="requests/s of the steady load")
    add("--steady-seconds", type=float, default=15)
    add("--steady-rounds", type=int, default=2)
    add("--ramp", type=int, default=0, help="sequences that join one by one")
    add("--ramp-seconds", type=float, default=4, help="from the first to the last of them")
    add("--ramp-tokens", type=int, default=1024, help="of each answer: all are to run at once")
    add("--patience", type=float, default=900, help="seconds for one engine to do everything")
    add("--side-by-side", action="store_true", help="both engines of a pair at once, in turns")
    add(
        "--engine",
        type=json.loads,
        default={},
        metavar="JSON",
        help='more arguments of the engine, such as {"dtype": "float32"}',
    )
    engines.add_logs_option(parser)
    engines.add_deadline_option(parser)
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.rounds = 1, min(options.rounds, 2)
        options.requests = min(options.requests, 32)
        options.steady_seconds = min(options.steady_seconds, 5)
    # Told to end, it ends its engine, removes its directory and reports the pairs that are there.
    signal.signal(signal.SIGTERM, _told_to_end)
    if options.side_by_side:
        for name in ("rounds", "steady_rounds"):
            if getattr(options, name) % 2:
                parser.error(f"--side-by-side compares two rounds together: an even --{name}")
    report = Report("solo", options)
    try:
        measure(report, options)
    except EngineFailed as failure:
        print(failure, file=sys.stderr)
        return 2
    name = _NAMES[options.serving]
    return report.finish(f"{options.model}: {name} with kvcached over {name} without")


if __name__ == "__main__":
    sys.exit(main())
