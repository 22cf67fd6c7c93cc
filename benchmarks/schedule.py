"""A scheduler's steps: vLLM's own scheduler, KV cache manager and block pool, elastic over vanilla.

There is no model: where one would run, every request is given a token. A burst of equal requests
comes to both schedulers, in one process; they take turns step by step, and a ratio is that of one
burst's medians. The elastic scheduler's pager commits real memory on the host, in a thread of its
own.

  schedule            schedule() of a step in which all requests decode
  update_from_output  and of what follows the step
  a burst             all steps of a burst, prompts and ends too

Processor time of the scheduler's thread: other processes do not count, nor does the pager. What a
step waits for memory does not, either; benchmarks.solo shows that.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import engines, models, scratch
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples, ratios

#: Of what vLLM's own takes, as for the pool's operations (benchmarks.pool).
TARGET = Target(at_most=1.1)
BLOCK_TOKENS = 16
#: Two layers of so many heads: the blocks are small, and nobody looks into them.
LAYERS = ("layer0", "layer1")
HEADS, HEAD_SIZE = 2, 64
#: Between a step's plan and its output, in seconds: time for the pager, as a device gives it.
DEVICE = 0.001


@dataclass
class Times:
    """Of one scheduler in one burst: microseconds of each step."""

    schedule: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)
    decoding: list[bool] = field(default_factory=list)

    def of_decoding(self, name: str) -> float:
        """The median over steps in which all requests decode."""
        times: list[float] = getattr(self, name)
        kept = [value for value, decoding in zip(times, self.decoding, strict=True) if decoding]
        return statistics.median(kept)

    @property
    def whole(self) -> float:
        return sum(self.schedule) + sum(self.update)


class Side:
    """A scheduler and what it is given to do."""

    def __init__(
        self, kind: type[Any], vllm_config: Any, cache: Any, pager: Any | None = None
    ) -> None:
        """`pager`: who is told of each step, where it is elastic."""
        from vllm.v1.structured_output import StructuredOutputManager

        vllm_config.cache_config.num_gpu_blocks = cache.num_blocks
        self.scheduler = kind(
            vllm_config=vllm_config,
            kv_cache_config=cache,
            structured_output_manager=StructuredOutputManager(vllm_config),
            block_size=BLOCK_TOKENS,
            hash_block_size=BLOCK_TOKENS,
            log_stats=True,
        )
        self._pager = pager

    def add(self, name: str, prompt: list[int], tokens: int) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher
        from vllm.v1.request import Request

        parameters = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        request = Request(
            request_id=name,
            prompt_token_ids=prompt,
            sampling_params=parameters,
            pooling_params=None,
            block_hasher=get_request_block_hasher(BLOCK_TOKENS, sha256),
        )
        self.scheduler.add_request(request)

    def step(self, times: Times, requests: int) -> None:
        """One step, without a model."""
        from vllm.v1.outputs import ModelRunnerOutput

        began = time.thread_time()
        plan = self.scheduler.schedule()
        times.schedule.append(1e6 * (time.thread_time() - began))
        if self._pager is not None:
            self._pager.launched(plan.kvcached_step)
        names = list(plan.num_scheduled_tokens)
        times.decoding.append(plan.total_num_scheduled_tokens == len(names) == requests)
        known = self.scheduler.requests
        done = [
            [7] if known[name].num_computed_tokens >= known[name].num_tokens else []
            for name in names
        ]
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=done,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        time.sleep(DEVICE)
        began = time.thread_time()
        self.scheduler.update_from_output(plan, output)
        times.update.append(1e6 * (time.thread_time() - began))

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.has_unfinished_requests())


def configuration(options: argparse.Namespace, path: str, name: str) -> Any:
    """vLLM's, for one side."""
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(
        model=path,
        skip_tokenizer_init=True,
        load_format="dummy",
        max_model_len=options.prompt_tokens + options.output_tokens,
        block_size=BLOCK_TOKENS,
        max_num_seqs=options.requests,
        max_num_batched_tokens=16384,
        enforce_eager=True,
    )
    made = arguments.create_engine_config()
    made.instance_id = name
    return made


def cache_of(options: argparse.Namespace) -> Any:
    """A cache with room for a burst and what it leaves behind."""
    import torch
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
        KVCacheTensor,
    )

    from kvcached_vllm import engine

    spec = FullAttentionSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=HEADS, head_size=HEAD_SIZE, dtype=torch.float32
    )
    blocks_of_one = -(-(options.prompt_tokens + options.output_tokens) // BLOCK_TOKENS) + 1
    blocks = 3 * options.requests * blocks_of_one // 2
    page = spec.page_size_bytes
    names = list(LAYERS)
    if engine.describes_one_buffer():
        whole = {"size": blocks * page * len(names), "layers": names}
        tensors = [KVCacheTensor(**whole, layer_stride=blocks * page, block_stride=page)]
    else:
        tensors = [KVCacheTensor(size=blocks * page, shared_by=[name]) for name in names]
    return KVCacheConfig(
        num_blocks=blocks,
        kv_cache_tensors=tensors,
        kv_cache_groups=[KVCacheGroupSpec(names, spec)],
    )


def pager_for(vllm_config: Any, cache: Any) -> Any:
    """What an elastic worker would start."""
    from kvcached import _C, shm
    from kvcached_vllm import identity
    from kvcached_vllm.attach import settings
    from kvcached_vllm.kv_layout import geometry_of

    wanted = settings()
    driver = _C.host_driver()
    driver.probe()
    geometry = geometry_of(cache, len(LAYERS), driver, 0)
    limit = cache.num_blocks * len(LAYERS) * cache.kv_cache_groups[0].kv_cache_spec.page_size_bytes
    pager = _C.Pager(
        driver,
        geometry,
        str(identity.row_path(vllm_config, wanted, 0)),
        identity.engine_name(vllm_config, wanted),
        "layer",
        0,
        limit,
        ledger=str(shm.ledger_path(identity.directory(wanted), driver.device_id)),
        terms=_C.LeaseTerms("vllm", identity.instance_of(vllm_config), limit_bytes=limit),
    )
    pager.start()
    return pager


def burst(elastic: Side, vanilla: Side, options: argparse.Namespace, turn: int) -> list[Times]:
    """Plays one burst; [elastic's times, vanilla's]."""
    sides = (elastic, vanilla)
    for number in range(options.requests):
        draw = random.Random(1000 * turn + number)
        prompt = [draw.randrange(250) for _ in range(options.prompt_tokens)]
        for side in sides:
            side.add(f"{turn}-{number}", prompt, options.output_tokens)
    gc.collect()
    gc.freeze()
    times = [Times(), Times()]
    while any(side.busy for side in sides):
        for side, own in zip(sides, times, strict=True):
            if side.busy:
                side.step(own, options.requests)
    gc.unfreeze()
    return times


def measure(report: Report, options: argparse.Namespace, directory: Path) -> None:
    """Plays every burst and adds the rows."""
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import init_none_hash
    from vllm.v1.core.sched.scheduler import Scheduler

    from kvcached_vllm.scheduler import ElasticScheduler

    init_none_hash(sha256)
    path = models.find("tiny", directory).path
    cache = cache_of(options)
    own = configuration(options, path, "elastic")
    pager = pager_for(own, cache)
    try:
        elastic = Side(ElasticScheduler, own, cache, pager)
        vanilla = Side(Scheduler, configuration(options, path, "vanilla"), cache)
        burst(elastic, vanilla, options, 0)  # everything is cold
        found = [burst(elastic, vanilla, options, turn + 1) for turn in range(options.rounds)]
        elastic.scheduler.shutdown()
        vanilla.scheduler.shutdown()
    finally:
        pager.stop()
    rows: tuple[tuple[str, str, Callable[[Times], float]], ...] = (
        ("schedule", "us", lambda times: times.of_decoding("schedule")),
        ("update_from_output", "us", lambda times: times.of_decoding("update")),
        ("a burst", "ms", lambda times: times.whole / 1000),
    )
    for name, unit, of in rows:
        ours, theirs = (
            Samples(unit, [of(side) for side in column]) for column in zip(*found, strict=True)
        )
        more = [mine - other for mine, other in zip(ours.values, theirs.values, strict=True)]
        parts = {"elastic": ours, "vanilla": theirs, "more": Samples(unit, more)}
        report.add(Row(name, ratios(ours, theirs), TARGET, parts))


def main() -> int:
    parser = arguments_of(__doc__ or "")
    add = parser.add_argument
    add("--requests", type=int, default=256)
    add("--rounds", type=int, default=9)
    add("--prompt-tokens", type=int, default=512)
    add("--output-tokens", type=int, default=128)
    options = parser.parse_args()
    if options.quick:
        options.requests, options.rounds = min(options.requests, 32), min(options.rounds, 3)
    with scratch.directory() as directory:
        # Before kvcached and vLLM are imported: both read their environment once.
        os.environ.update(engines.environment(directory / "rows", engines.ELASTIC))
        os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
        report = Report("schedule", options)
        measure(report, options, directory)
    return report.finish(f"Steps of vLLM's scheduler with {options.requests} requests")


if __name__ == "__main__":
    sys.exit(main())
