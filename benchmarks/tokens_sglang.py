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
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import answers, engines, models, scratch, sglang_arguments
from benchmarks.answers import Answer
from benchmarks.report import Report, Target, arguments_of

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


def run(
    name: str,
    feature: Feature,
    elastic: bool,
    model: models.Model,
    options: argparse.Namespace,
    directory: Path,
) -> Answer:
    """One engine's life."""
    order = {
        "engine": {
            **sglang_arguments.of(model, _LONGEST),
            # Engines beside each other take no notice of how much the others take.
            "mem_fraction_static": 0.5,
            "max_total_tokens": 65536,
            **options.engine,
            **feature.engine,
        },
        "waves": 2,
        "release": feature.release,
    }
    variables = engines.VANILLA
    if elastic:
        variables = {**engines.ELASTIC, "KVCACHED_SANITY_CHECK": "true", **feature.elastic}
    variables = {
        **model.variables(),
        # Engines of several ranks that start beside each other find unlike GPUs.
        "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "false",
        **variables,
    }
    program = "benchmarks.tokens_sglang_engine"
    return answers.run(name, program, order, variables, options, directory)


def add_row(report: Report, name: str, exact: bool, vanilla: Answer, other: Answer) -> bool:
    """A feature's row; returns whether it could be compared."""
    if answers.failed(report, name, (vanilla, other)):
        return False
    target = Target(at_least=1.0) if exact else None
    parts = {"cached": other.facts["cached_tokens"]}
    return answers.add_row(report, name, other, vanilla, target, parts)


def measure(report: Report, options: argparse.Namespace) -> bool:
    """Runs every engine and adds every row; returns whether all ran."""
    with scratch.directory() as directory:
        model = answers.model_of(options, directory)
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
    answers.add_options(parser, "SGLang's")
    add("--features", nargs="+", choices=list(FEATURES), default=["deterministic"])
    add("--twice", action="store_true", help="vanilla against itself, too")
    options = answers.parsed(parser)
    report = Report("tokens_sglang", options)
    complete = measure(report, options)
    status = report.finish(
        f"{options.model}: requests with the same tokens, SGLang elastic and vanilla"
    )
    return status if complete else 2


if __name__ == "__main__":
    sys.exit(main())
