"""The same tokens: every way of running SGLang here, elastic against vanilla.

A *feature* is a set of engine arguments. Each is served by a vanilla engine and by an elastic one
under KVCACHED_SANITY_CHECK, in processes of their own, with `--requests` requests that share
prefixes, cross the chunk size and end one after the other; half of them come when the first half
has been answered. Engines run `--parallel` at a time.

SGLang's scheduler is a process of its own that starts with whichever requests have arrived, so that
no two runs form the same batches, and in bfloat16 an answer depends on who shared its batches.
*Deterministic* features therefore run under SGLang's own `--enable-deterministic-inference`, whose
kernels make it independent of them: there a difference is a fault. The others say how much differs
anyway: their rows with "vanilla twice" compare two vanilla engines (`--twice`).

  distinct  different answers among vanilla's: where there are few, equality proves nothing
  cached    tokens of prompts that were found in the prefix cache, by the elastic engine
  seconds   from the process's start to its end: not a measure of speed, others run beside it
  median    requests with the same tokens, as a share of all
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import engines, models, scratch, sglang_arguments
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples

_DETERMINISTIC: dict[str, Any] = {"enable_deterministic_inference": True}
#: The longest prompt and answer together.
_LONGEST = 4096


@dataclass(frozen=True)
class Feature:
    """One way of running SGLang. `elastic` is set for the elastic engine alone."""

    engine: dict[str, Any] = field(default_factory=dict)
    elastic: dict[str, str] = field(default_factory=dict)
    release: bool = False
    """Whether memory is given back and taken again, as between steps of training."""
    exact: bool = True
    """Whether every answer has to be vanilla's."""


FEATURES: dict[str, Feature] = {
    # In float32, for a machine without a GPU. Rounding is too small there to change a token.
    "float32": Feature({"dtype": "float32"}),
    "float32, pages of 16": Feature({"dtype": "float32", "page_size": 16}),
    "float32, no prefixes": Feature({"dtype": "float32", "disable_radix_cache": True}),
    "float32, released": Feature({"dtype": "float32"}, release=True),
    # What SGLang does by itself: prefixes, overlap, CUDA graphs.
    "default": Feature(exact=False),
    "deterministic": Feature(_DETERMINISTIC),
    "deterministic, fp8": Feature({**_DETERMINISTIC, "kv_cache_dtype": "fp8_e4m3"}),
    "deterministic, no prefixes": Feature({**_DETERMINISTIC, "disable_radix_cache": True}),
    "deterministic, chunks of 256": Feature({**_DETERMINISTIC, "chunked_prefill_size": 256}),
    "deterministic, pages of 16": Feature({**_DETERMINISTIC, "page_size": 16}),
    "deterministic, no overlap": Feature({**_DETERMINISTIC, "disable_overlap_schedule": True}),
    # 16,000 tokens at 112 KiB: requests queue, prefixes go early and extents come and go.
    "deterministic, small budget": Feature(_DETERMINISTIC, {"KVCACHED_LIMIT": "1792MiB"}),
    "deterministic, no cap": Feature(_DETERMINISTIC, {"KVCACHED_MAX_CACHED_TOKENS": "-1"}),
    "deterministic, released": Feature(_DETERMINISTIC, release=True),
    # Over two GPUs.
    "deterministic, two ranks": Feature({**_DETERMINISTIC, "tp_size": 2}),
}


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
    report, log = where / "report.json", engines.logs_of(options, where) / f"{name}.log"
    order = {
        "engine": {
            **sglang_arguments.of(model, _LONGEST),
            # Engines beside each other take no notice of how much the others take.
            "mem_fraction_static": 0.5,
            "max_total_tokens": 65536,
            **options.engine,
            **feature.engine,
        },
        "requests": options.requests,
        "prompt_tokens": options.prompt_tokens,
        "output_tokens": options.output_tokens,
        "waves": 2,
        "release": feature.release,
        "report": str(report),
    }
    variables = engines.VANILLA
    if elastic:
        variables = {**engines.ELASTIC, "KVCACHED_SANITY_CHECK": "true", **feature.elastic}
    group = re.sub(r"[^a-z0-9]+", "-", name.lower())
    shared = {
        "KVCACHED_IPC_NAME": group,
        # Engines of several ranks that start beside each other find unlike GPUs.
        "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "false",
    }
    environment = engines.environment(
        directory / "rows", {**model.variables(), **shared, **variables}
    )
    command = [sys.executable, "-m", "benchmarks.tokens_sglang_engine", json.dumps(order)]
    began = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=engines.REPOSITORY,
            start_new_session=True,
        )
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


def add_row(report: Report, name: str, exact: bool, vanilla: Answer, other: Answer) -> bool:
    """A feature's row; returns whether it could be compared."""
    for answer in (vanilla, other):
        if answer.problem:
            print(answer.problem, file=sys.stderr, flush=True)
            report.fail(name, answer.problem.splitlines()[0])
            return False
    distinct = len(set(map(tuple, vanilla.tokens)))
    if distinct < len(vanilla.tokens) // 2:
        report.fail(name, f"only {distinct} different answers: they say nothing of the cache")
        return False
    same = [mine == its for mine, its in zip(other.tokens, vanilla.tokens, strict=True)]
    parts = {
        "requests": len(same),
        "distinct": distinct,
        "tokens": sum(map(len, vanilla.tokens)),
        "cached": other.facts["cached_tokens"],
    }
    report.add(
        Row(
            name,
            Samples("ratio", [sum(same) / len(same)]),
            Target(at_least=1.0) if exact else None,
            parts={
                **{label: Samples("", [float(value)]) for label, value in parts.items()},
                "seconds": Samples("s", [other.seconds]),
            },
            facts={"vanilla": vanilla.facts, "elastic": other.facts},
        )
    )
    return True


def measure(report: Report, options: argparse.Namespace) -> bool:
    """Runs every engine and adds every row; returns whether all ran."""
    with scratch.directory() as directory:
        model = models.find(options.model, directory)
        if model.load_format == "dummy":
            # Made-up weights differ between engines' ways of loading; files do not.
            from benchmarks import weights

            weights.write(Path(model.path))
            model = models.Model(model.path, "auto")
        wanted = {name: FEATURES[name] for name in options.features}
        kinds = {"vanilla": False, "elastic": True, **({"again": False} if options.twice else {})}
        with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
            running = {
                (label, kind): pool.submit(
                    run, f"{label}-{kind}", feature, elastic, model, options, directory
                )
                for label, feature in wanted.items()
                for kind, elastic in kinds.items()
            }
            complete = True
            for label, feature in wanted.items():
                found = {kind: running[label, kind].result() for kind in kinds}
                exact, vanilla = feature.exact, found["vanilla"]
                complete &= add_row(report, label, exact, vanilla, found["elastic"])
                if "again" in found:
                    title = f"{label}, vanilla twice"
                    complete &= add_row(report, title, exact, vanilla, found["again"])
        return complete


def main() -> int:
    parser = arguments_of(__doc__ or "")
    add = parser.add_argument
    add("--model", default="tiny", help=models.NAMES)
    add("--features", nargs="+", choices=list(FEATURES), default=["deterministic"])
    add("--requests", type=int, default=500)
    add("--prompt-tokens", type=int, default=400, help="the longest prompt")
    add("--output-tokens", type=int, default=96, help="the longest answer")
    add("--parallel", type=int, default=1, help="engines at a time")
    add("--twice", action="store_true", help="vanilla against itself, too")
    add("--patience", type=float, default=540, help="seconds for one engine to do everything")
    add("--engine", type=json.loads, default={}, metavar="JSON", help="more arguments of SGLang's")
    engines.add_logs_option(parser)
    engines.add_deadline_option(parser)
    options = parser.parse_args()
    if options.quick:
        options.requests = min(options.requests, 32)
    report = Report("tokens_sglang", options)
    complete = measure(report, options)
    status = report.finish(
        f"{options.model}: requests with the same tokens, SGLang elastic and vanilla"
    )
    return status if complete else 2


if __name__ == "__main__":
    sys.exit(main())
