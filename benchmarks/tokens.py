"""The same tokens: every way of running vLLM here, elastic against vanilla.

A *feature* is a set of engine arguments and variables (benchmarks/tokens_features.py). Each is
served by an elastic engine under KVCACHED_SANITY_CHECK and then by a vanilla one, in processes of
their own, with `--requests` requests that share prefixes, cross the chunk size and end one after
the other. In bfloat16 an answer depends on who shared its batches, so vanilla admits in each step
as many requests as elastic did (benchmarks/replay.py). Features run `--parallel` at a time.

  same steps  1 where both put the same requests, equally far on, into every batch. Where they did,
            a difference is a fault; where they did not, rounding alone can make one.
  preempted steps of elastic that took a request out of the batch again
  distinct  different answers among vanilla's: where there are few, equality proves nothing
  seconds   from the process's start to its end: not a measure of speed, others run beside it
  median    requests with the same tokens, as a share of all

With `--own-batches` a third engine, vanilla too, forms its batches as it likes: its row says how
far vanilla's answers depend on them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import engines, models, scratch, weights
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples
from benchmarks.tokens_features import FEATURES, Feature

_REPOSITORY = Path(__file__).parent.parent
#: Seconds for one engine to do everything.
PATIENCE = 540
_LOG_LINES = 30


@dataclass(frozen=True)
class Answer:
    """What one engine made of the requests; `problem` where it did not."""

    tokens: list[list[int]]
    facts: dict[str, Any]
    seconds: float
    problem: str = ""


def run(
    name: str,
    feature: Feature,
    model: models.Model,
    options: argparse.Namespace,
    directory: Path,
    like: Answer | None = None,
    own_batches: bool = False,
) -> Answer:
    """One engine's life in a directory of its own: an elastic one, or a vanilla one `like` an
    elastic one that has answered, with batches like its own if not `own_batches`."""
    elastic = like is None
    where = directory / name
    where.mkdir()
    report, log = where / "report.json", where / "engine.log"
    order = {
        "engine": {
            **model.engine_arguments(),
            "skip_tokenizer_init": True,
            "seed": 0,
            "max_model_len": 4096,
            **options.engine,
            **feature.engine,
            **_vanilla_alone(feature, like),
        },
        "requests": options.requests,
        "prompt_tokens": options.prompt_tokens,
        "output_tokens": options.output_tokens,
        "sleep": feature.sleep,
        "scheduler": None if like is None else like.facts["scheduler"],
        "admissions": None if like is None or own_batches else like.facts["admissions"],
        "rows": str(directory / "rows") if elastic else None,
        "group": group_of(name),
        "report": str(report),
    }
    variables = {"ENABLE_KVCACHED": "false"}
    if elastic:
        variables = {
            "ENABLE_KVCACHED": "true",
            "KVCACHED_REQUIRED": "true",
            "KVCACHED_SANITY_CHECK": "true",
            # Prefixes are found alike in both: what is dropped early would have to be computed.
            "KVCACHED_MAX_CACHED_TOKENS": "-1",
            **feature.elastic,
        }
    environment = {
        **os.environ,
        "VLLM_NO_USAGE_STATS": "1",
        # In one process every request is there before the first step, so that two runs take the
        # same steps.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
        "KVCACHED_SHM_DIR": str(directory / "rows"),
        "KVCACHED_IPC_NAME": group_of(name),
        **feature.variables,
        **variables,
    }
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.tokens_engine", json.dumps(order)]
    with log.open("w") as out:
        try:
            status: int | str = subprocess.run(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=_REPOSITORY,
                timeout=min(PATIENCE, engines.seconds_left(options)),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = "time-out"
    seconds = time.monotonic() - began
    if status != 0 or not report.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
        return Answer([], {}, seconds, f"{name} ended with {status}:\n{tail}")
    made = json.loads(report.read_text())
    return Answer(made.pop("tokens"), made, seconds)


def group_of(name: str) -> str:
    """A KVCACHED_IPC_NAME for it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _vanilla_alone(feature: Feature, like: Answer | None) -> dict[str, Any]:
    if like is None:
        return {}
    return {"num_gpu_blocks_override": like.facts["limit_blocks"]} if feature.same_budget else {}


def answer(
    name: str,
    feature: Feature,
    model: models.Model,
    options: argparse.Namespace,
    directory: Path,
) -> list[Answer]:
    """Elastic's, vanilla's and, where wanted, vanilla's with its own batches."""
    found = [run(f"{name}-elastic", feature, model, options, directory)]
    for label in ["vanilla"] + ["vanilla-own"] * options.own_batches:
        if not found[0].problem:
            own = label == "vanilla-own"
            found.append(run(f"{name}-{label}", feature, model, options, directory, found[0], own))
    return found


def add_row(report: Report, name: str, one: Answer, other: Answer, target: Target | None) -> bool:
    """Compares two engines' answers; returns whether it could."""
    distinct = len(set(map(tuple, other.tokens)))
    if distinct < len(other.tokens) // 2:
        print(f"{name}: only {distinct} different answers: they say nothing of the cache")
        return False
    same = [mine == its for mine, its in zip(one.tokens, other.tokens, strict=True)]
    parts = {
        "same steps": float(one.facts["steps"] == other.facts["steps"]),
        "preempted": float(one.facts["preemptions"]),
        "requests": float(len(same)),
        "distinct": float(distinct),
        "tokens": float(sum(map(len, other.tokens))),
    }
    report.add(
        Row(
            name,
            Samples("ratio", [sum(same) / len(same)]),
            target,
            parts={
                **{label: Samples("", [value]) for label, value in parts.items()},
                "seconds": Samples("s", [one.seconds]),
            },
            facts={"elastic": brief(one.facts), "vanilla": brief(other.facts)},
        )
    )
    return True


def brief(facts: dict[str, Any]) -> dict[str, Any]:
    """Without what is long."""
    return {name: value for name, value in facts.items() if name != "admissions"}


def measure(report: Report, options: argparse.Namespace) -> bool:
    """Runs every engine and adds every row; returns whether all ran."""
    with scratch.directory() as directory:
        (directory / "rows").mkdir(mode=0o700)
        model = models.find(options.model, directory)
        if model.load_format == "dummy":
            weights.write(Path(model.path))
            model = models.Model(model.path, "auto")
        wanted = {feature: FEATURES[feature] for feature in options.features}
        with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
            found = {
                label: pool.submit(answer, label, feature, model, options, directory)
                for label, feature in wanted.items()
            }
            complete = True
            for label, answers in found.items():
                elastic, *vanilla = answers.result()
                problems = [made.problem for made in (elastic, *vanilla) if made.problem]
                for problem in problems:
                    print(problem, file=sys.stderr, flush=True)
                if problems:
                    complete = False
                    report.fail(label, problems[0].splitlines()[0])
                    continue
                complete &= add_row(report, label, elastic, vanilla[0], Target(at_least=1.0))
                if options.own_batches:
                    add_row(report, f"{label}, vanilla twice", vanilla[1], vanilla[0], None)
        return complete


def main() -> int:
    parser = arguments_of(__doc__ or "")
    parser.add_argument("--model", default="tiny", help="see benchmarks/models.py")
    parser.add_argument("--features", nargs="+", choices=list(FEATURES), default=["default"])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--prompt-tokens", type=int, default=400, help="the longest prompt")
    parser.add_argument("--output-tokens", type=int, default=96, help="the longest answer")
    parser.add_argument("--parallel", type=int, default=1, help="engines at a time")
    parser.add_argument(
        "--own-batches", action="store_true", help="vanilla against itself in other batches, too"
    )
    parser.add_argument(
        "--engine", type=json.loads, default={}, metavar="JSON", help="more arguments of vllm.LLM"
    )
    engines.add_deadline_option(parser)
    options = parser.parse_args()
    if options.quick:
        options.requests = min(options.requests, 32)
    report = Report("tokens", options)
    complete = measure(report, options)
    status = report.finish(f"{options.model}: requests with the same tokens, elastic and vanilla")
    return status if complete else 2


if __name__ == "__main__":
    sys.exit(main())
