"""What engines make of the same requests, each in a process of its own, and how much of it is the
same: for benchmarks.tokens and benchmarks.tokens_sglang."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import engines, models
from benchmarks.report import Report, Row, Target
from benchmarks.samples import Samples


@dataclass(frozen=True)
class Answer:
    """What one engine made of the requests; `problem` where it did not."""

    tokens: list[list[int]]
    facts: dict[str, Any]
    seconds: float
    problem: str = ""


def add_options(parser: argparse.ArgumentParser, engine: str) -> None:
    """Adds what every engine is asked and given. `engine`: whose arguments `--engine` takes."""
    add = parser.add_argument
    add("--model", default="tiny", help=models.NAMES)
    add("--requests", type=int, default=500)
    add("--prompt-tokens", type=int, default=400, help="the longest prompt")
    add("--output-tokens", type=int, default=96, help="the longest answer")
    add("--parallel", type=int, default=1, help="engines at a time")
    add("--patience", type=float, default=540, help="seconds for one engine to do everything")
    add("--engine", type=json.loads, default={}, metavar="JSON", help=f"more arguments of {engine}")
    engines.add_logs_option(parser)
    engines.add_deadline_option(parser)


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options that were given."""
    options = parser.parse_args()
    if options.quick:
        options.requests = min(options.requests, 32)
    return options


def model_of(options: argparse.Namespace, directory: Path) -> models.Model:
    """The model that all engines load. Made-up weights differ between engines' ways of loading, so
    they are written into files."""
    model = models.find(options.model, directory)
    if model.load_format == "dummy":
        from benchmarks import weights

        weights.write(Path(model.path))
        model = models.Model(model.path, "auto")
    return model


def run(
    name: str,
    program: str,
    order: Mapping[str, Any],
    variables: Mapping[str, str],
    options: argparse.Namespace,
    directory: Path,
) -> Answer:
    """One engine's life in a directory of its own. `order`: what `program` is told beside the
    requests."""
    where = directory / name
    where.mkdir()
    report, log = where / "report.json", engines.logs_of(options, where) / f"{name}.log"
    told = {
        **order,
        "requests": options.requests,
        "prompt_tokens": options.prompt_tokens,
        "output_tokens": options.output_tokens,
        "report": str(report),
    }
    environment = engines.environment(
        directory / "rows", {"KVCACHED_IPC_NAME": group_of(name), **variables}
    )
    began = time.monotonic()
    process = engines.start([sys.executable, "-m", program, json.dumps(told)], environment, log)
    try:
        patience = min(options.patience, engines.seconds_left(options))
        status: int | str = process.wait(patience)
    except subprocess.TimeoutExpired:
        status = "no time left"
    finally:
        engines.end_group(process)
    seconds = time.monotonic() - began
    print(f"{name}: {status} after {seconds:.0f} s", flush=True)
    if status != 0 or not report.exists():
        problem = f"{name} ended with {status}:\n{engines.last_lines(log)}"
        return Answer([], {}, seconds, problem)
    made = json.loads(report.read_text())
    return Answer(made.pop("tokens"), made, seconds)


def group_of(name: str) -> str:
    """A KVCACHED_IPC_NAME for it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def failed(report: Report, name: str, answers: Iterable[Answer]) -> bool:
    """Whether one of the engines did not answer, which is reported then."""
    problems = [answer.problem for answer in answers if answer.problem]
    for problem in problems:
        print(problem, file=sys.stderr, flush=True)
    if problems:
        report.fail(name, problems[0].splitlines()[0])
    return bool(problems)


def add_row(
    report: Report,
    name: str,
    answer: Answer,
    vanilla: Answer,
    target: Target | None,
    own_parts: Mapping[str, float],
) -> bool:
    """Compares an engine's answers with vanilla's; returns whether it could. `own_parts`: columns
    that this kind of engine has beside those of all."""
    distinct = len(set(map(tuple, vanilla.tokens)))
    if distinct < len(vanilla.tokens) // 2:
        report.fail(name, f"only {distinct} different answers: they say nothing of the cache")
        return False
    same = [mine == its for mine, its in zip(answer.tokens, vanilla.tokens, strict=True)]
    parts = {
        **own_parts,
        "requests": len(same),
        "distinct": distinct,
        "tokens": sum(map(len, vanilla.tokens)),
    }
    report.add(
        Row(
            name,
            Samples("ratio", [sum(same) / len(same)]),
            target,
            parts={
                **{label: Samples("", [float(value)]) for label, value in parts.items()},
                "seconds": Samples("s", [answer.seconds]),
            },
            facts={"elastic": _brief(answer.facts), "vanilla": _brief(vanilla.facts)},
        )
    )
    return True


def _brief(facts: dict[str, Any]) -> dict[str, Any]:
    """Without what is long: a number for each step of a vLLM engine."""
    return {name: value for name, value in facts.items() if name != "admissions"}
