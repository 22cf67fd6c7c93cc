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
import sys
from pathlib import Path
from typing import Any

from benchmarks import answers, engines, models, scratch
from benchmarks.answers import Answer
from benchmarks.report import Report, Target, arguments_of
from benchmarks.tokens_features import FEATURES, Feature


def run(
    name: str,
    feature: Feature,
    model: models.Model,
    options: argparse.Namespace,
    directory: Path,
    like: Answer | None = None,
    own_batches: bool = False,
) -> Answer:
    """One engine's life: an elastic one, or a vanilla one `like` an elastic one that has answered,
    with batches like its own if not `own_batches`."""
    elastic = like is None
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
        "sleep": feature.sleep,
        "scheduler": None if like is None else like.facts["scheduler"],
        "admissions": None if like is None or own_batches else like.facts["admissions"],
        "rows": str(directory / "rows") if elastic else None,
        "group": answers.group_of(name),
    }
    variables = engines.VANILLA
    if elastic:
        variables = {
            **engines.ELASTIC,
            "KVCACHED_SANITY_CHECK": "true",
            # Prefixes are found alike in both: what is dropped early would have to be computed.
            "KVCACHED_MAX_CACHED_TOKENS": "-1",
            **feature.elastic,
        }
    variables = {
        # In one process every request is there before the first step, so that two runs take the
        # same steps.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        **feature.variables,
        **variables,
    }
    return answers.run(name, "benchmarks.tokens_engine", order, variables, options, directory)


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
    parts = {
        "same steps": one.facts["steps"] == other.facts["steps"],
        "preempted": one.facts["preemptions"],
    }
    return answers.add_row(report, name, one, other, target, parts)


def measure(report: Report, options: argparse.Namespace) -> bool:
    """Runs every engine and adds every row; returns whether all ran."""
    with scratch.directory() as directory:
        model = answers.model_of(options, directory)
        wanted = {feature: FEATURES[feature] for feature in options.features}
        with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
            running = {
                label: pool.submit(answer, label, feature, model, options, directory)
                for label, feature in wanted.items()
            }
            complete = True
            for label, one in running.items():
                found = one.result()
                if answers.failed(report, label, found):
                    complete = False
                    continue
                elastic, *vanilla = found
                complete &= add_row(report, label, elastic, vanilla[0], Target(at_least=1.0))
                if options.own_batches:
                    add_row(report, f"{label}, vanilla twice", vanilla[1], vanilla[0], None)
        return complete


def main() -> int:
    parser = arguments_of(__doc__ or "")
    add = parser.add_argument
    answers.add_options(parser, "vllm.LLM")
    add("--features", nargs="+", choices=list(FEATURES), default=["default"])
    add("--own-batches", action="store_true", help="vanilla against itself in other batches, too")
    options = answers.parsed(parser)
    report = Report("tokens", options)
    complete = measure(report, options)
    status = report.finish(f"{options.model}: requests with the same tokens, elastic and vanilla")
    return status if complete else 2


if __name__ == "__main__":
    sys.exit(main())
