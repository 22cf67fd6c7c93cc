"""The same tokens: every way of running vLLM here, elastic against vanilla.

A *feature* is a set of engine arguments and variables (benchmarks/tokens_features.py). Each is
served by a vanilla engine and by an elastic one under KVCACHED_SANITY_CHECK, in processes of their
own, with `--requests` requests that share prefixes, cross the chunk size and end one after the
other. Engines run `--parallel` at a time. What differs is counted, and so is what differs between
two vanilla runs (`--twice`): where an engine does not repeat itself, elastic may differ as much.

  same steps  1 where both put the same requests into each batch. Where they did not, bfloat16
            answers may differ by rounding alone, as those of two vanilla engines do; where they
            did, a difference is a fault.
  distinct  different answers among vanilla's: where there are few, equality proves nothing
  seconds   from the process's start to its end: not a measure of speed, others run beside it
  median    requests with the same tokens, as a share of all

Features whose vanilla engine is the same are compared with one run of it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import models, weights
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
    elastic: bool,
    model: models.Model,
    options: argparse.Namespace,
    directory: Path,
) -> Answer:
    """One engine's life in a directory of its own."""
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
        },
        "requests": options.requests,
        "prompt_tokens": options.prompt_tokens,
        "output_tokens": options.output_tokens,
        "sleep": feature.sleep,
        "report": str(report),
    }
    variables = {"ENABLE_KVCACHED": "false"}
    if elastic:
        variables = {
            "ENABLE_KVCACHED": "true",
            "KVCACHED_REQUIRED": "true",
            "KVCACHED_SANITY_CHECK": "true",
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
        "KVCACHED_IPC_NAME": re.sub(r"[^a-z0-9]+", "-", name.lower()),
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
                timeout=PATIENCE,
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


def add_row(report: Report, name: str, vanilla: Answer, elastic: Answer) -> bool:
    """A feature's row; returns whether it could be compared."""
    for answer in (vanilla, elastic):
        if answer.problem:
            print(answer.problem, file=sys.stderr, flush=True)
    if vanilla.problem or elastic.problem:
        return False
    distinct = len({tuple(tokens) for tokens in vanilla.tokens})
    if distinct < len(vanilla.tokens) // 2:
        print(f"{name}: only {distinct} different answers: they say nothing of the cache")
        return False
    same = sum(
        one == other for one, other in zip(vanilla.tokens, elastic.tokens, strict=True)
    ) / len(vanilla.tokens)
    report.add(
        Row(
            name,
            Samples("ratio", [same]),
            Target(at_least=1.0),
            parts={
                "same steps": Samples(
                    "", [float(vanilla.facts["steps"] == elastic.facts["steps"])]
                ),
                "requests": Samples("", [float(len(vanilla.tokens))]),
                "distinct": Samples("", [float(distinct)]),
                "tokens": Samples("", [float(sum(map(len, vanilla.tokens)))]),
                "seconds": Samples("s", [elastic.seconds]),
            },
            facts={"vanilla": vanilla.facts, "elastic": elastic.facts},
        )
    )
    return True


def measure(report: Report, options: argparse.Namespace) -> bool:
    """Runs every engine and adds every row; returns whether all ran."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="kvcached-tokens-", dir=shared) as name:
        directory = Path(name)
        (directory / "rows").mkdir(mode=0o700)
        model = models.find(options.model, directory)
        if model.load_format == "dummy":
            weights.write(Path(model.path))
            model = models.Model(model.path, "auto")
        wanted = {feature: FEATURES[feature] for feature in options.features}
        with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
            vanilla = {
                feature.vanilla_key: pool.submit(
                    run, f"{label}-vanilla", feature, False, model, options, directory
                )
                for label, feature in wanted.items()
            }
            again = {}
            if options.twice:
                again = {
                    label: pool.submit(
                        run, f"{label}-vanilla-again", feature, False, model, options, directory
                    )
                    for label, feature in wanted.items()
                }
            elastic = {
                label: pool.submit(
                    run, f"{label}-elastic", feature, True, model, options, directory
                )
                for label, feature in wanted.items()
            }
            complete = True
            for label, feature in wanted.items():
                first = vanilla[feature.vanilla_key].result()
                complete &= add_row(report, label, first, elastic[label].result())
                if label in again:
                    add_row(report, f"{label}, vanilla twice", first, again[label].result())
        return complete


def main() -> int:
    parser = arguments_of(__doc__ or "")
    parser.add_argument("--model", default="tiny", help="see benchmarks/models.py")
    parser.add_argument("--features", nargs="+", choices=list(FEATURES), default=["default"])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--prompt-tokens", type=int, default=400, help="the longest prompt")
    parser.add_argument("--output-tokens", type=int, default=96, help="the longest answer")
    parser.add_argument("--parallel", type=int, default=1, help="engines at a time")
    parser.add_argument("--twice", action="store_true", help="vanilla against itself, too")
    parser.add_argument(
        "--engine", type=json.loads, default={}, metavar="JSON", help="more arguments of vllm.LLM"
    )
    options = parser.parse_args()
    if options.quick:
        options.requests = min(options.requests, 32)
    report = Report("tokens", options)
    complete = measure(report, options)
    status = report.finish(f"{options.model}: requests with the same tokens, elastic and vanilla")
    return status if complete else 2


if __name__ == "__main__":
    sys.exit(main())
