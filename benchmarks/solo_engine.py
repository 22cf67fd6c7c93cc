"""The program in an engine's process for benchmarks.solo: builds vLLM's asynchronous engine, puts
requests to it in phases, writes what it measured. SGLang's is benchmarks/solo_sglang.py.

Started with one argument, the order as JSON. The phases, in this order:

  ramp     sequences that join one by one and all run together, into a cold cache
  rounds   bursts: all requests at once
  steady   requests at a rate, whatever the engine does with them
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.decoding import decoding_seconds
from benchmarks.solo_prompts import Prompts, Request
from benchmarks.solo_turns import EngineSide

#: Quiet time between being ready and the first request: memory after the start is read there.
QUIET_SECONDS = 1.0
#: Time after the last answer; memory is read a second after it.
IDLE_SECONDS = 2.0
#: Before the ramp, so that it does not meet kernels that were never loaded.
_FIRST_REQUESTS = 4


@dataclass(frozen=True)
class Answer:
    """What came back. Times are seconds."""

    tokens: list[int]
    began: float
    ended: float
    first_token_after: float
    """From when it was due."""
    between_tokens: float
    late: float
    """How long after it was due it was put to the engine."""


async def ask(engine: Any, name: str, request: Request, start: float) -> Answer:
    """Puts one request to the engine when it is due and waits for all of its answer."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    await asyncio.sleep(max(0.0, start + request.due - time.perf_counter()))
    late = time.perf_counter() - start - request.due
    sampling = SamplingParams(
        temperature=0,
        max_tokens=request.tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    began = time.time()
    async for output in engine.generate({"prompt_token_ids": request.prompt}, sampling, name):
        final = output
    tokens = list(final.outputs[0].token_ids)
    if len(tokens) != request.tokens:
        raise RuntimeError(f"{name}: {len(tokens)} tokens came, {request.tokens} were asked for")
    seen = final.metrics
    return Answer(
        tokens=tokens,
        began=began,
        ended=time.time(),
        first_token_after=late + seen.first_token_latency,
        between_tokens=(seen.last_token_ts - seen.first_token_ts) / max(1, len(tokens) - 1),
        late=late,
    )


class NoMoreTurns(Exception):
    """What there is to be played has been played, or there is no time for the rest."""


#: Puts one request to the engine: its name, itself, and when the phase began.
Ask = Callable[[str, Request, float], Awaitable[Answer]]


async def play(put: Ask, phase: str, requests: Sequence[Request]) -> dict[str, Any]:
    """Plays a phase and says how it went."""
    processor = processor_seconds()
    began, start = time.time(), time.perf_counter()
    answers = await asyncio.gather(
        *(put(f"{phase}-{number}", request, start) for number, request in enumerate(requests))
    )
    seconds = time.perf_counter() - start
    tokens = [answer.tokens for answer in answers]
    ttft = [answer.first_token_after for answer in answers]
    tpot = [answer.between_tokens for answer in answers]
    return {
        "began": began,
        "ended": time.time(),
        "seconds": seconds,
        "requests": len(answers),
        "most_at_once": most_at_once(answers),
        "processor_seconds": processor_seconds() - processor,
        "output_tokens": sum(map(len, tokens)),
        "output_tokens_per_second": sum(map(len, tokens)) / seconds,
        "ttft": ttft,
        "tpot": tpot,
        "late": max(answer.late for answer in answers),
        "decoding_seconds": decoding_seconds(ttft, tpot, [len(made) for made in tokens]),
        "tokens": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
    }


def most_at_once(answers: Sequence[Answer]) -> int:
    """How many requests were under way at one moment, at most."""
    changes = [(answer.began, 1) for answer in answers]
    changes += [(answer.ended, -1) for answer in answers]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


def processor_seconds() -> float:
    """Processor time of this process and of those it started."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    times = [member.cpu_times() for member in family]
    return float(sum(used.user + used.system for used in times))


def cache_facts(config: Any) -> dict[str, Any]:
    """The whole KV cache: memory in vanilla vLLM, address space if elastic."""
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    from vllm.utils.torch_utils import get_dtype_size, kv_cache_dtype_str_to_dtype

    dtype = kv_cache_dtype_str_to_dtype(cache.cache_dtype, model)
    heads = model.get_num_kv_heads(parallel) * parallel.tensor_parallel_size
    layers = model.get_num_layers(parallel)
    a_token = 2 * heads * model.get_head_size() * layers * get_dtype_size(dtype)
    return {
        "kv_bytes": int(cache.num_gpu_blocks * cache.block_size * a_token),
        "kv_bytes_per_token": int(a_token),
        "keeps_prefixes": bool(cache.enable_prefix_caching),
    }


async def measure(
    put: Ask, vocabulary: int, facts: dict[str, Any], order: dict[str, Any]
) -> dict[str, Any]:
    """Plays every phase of the order on an engine that is ready. `facts`: cache_facts()."""
    prompts = Prompts(order, vocabulary)
    turns = EngineSide(order["turns"])
    report: dict[str, Any] = {"ready": time.time(), **facts}

    async def in_turn(name: str, requests: Sequence[Request]) -> dict[str, Any]:
        if not await turns.wait():
            raise NoMoreTurns
        played = await play(put, name, requests)
        turns.done()
        return played

    async def add(to: list[dict[str, Any]], name: str, requests: Sequence[Request]) -> None:
        to.append(await in_turn(name, requests))

    # As vLLM's and SGLang's servers do: else every full collection walks all that was imported.
    gc.collect()
    gc.freeze()
    await asyncio.sleep(QUIET_SECONDS)
    turns.done()
    report["first"] = await in_turn("first", prompts.burst(-1, _FIRST_REQUESTS))
    if order["ramp"]:
        report["ramp"] = await in_turn("ramp", prompts.ramp())
    # The first round is not counted: it meets everything cold.
    report["warm_up"] = await in_turn("round0", prompts.burst(0, order["requests"]))
    rounds: list[dict[str, Any]] = []
    steady: list[dict[str, Any]] = []
    report.update(rounds=rounds, steady=steady)
    with suppress(NoMoreTurns):
        for turn in range(1, order["rounds"] + 1):
            await add(rounds, f"round{turn}", prompts.burst(turn, order["requests"]))
        for turn in range(order["steady_rounds"] if order["rate"] else 0):
            await add(steady, f"steady{turn}", prompts.steady(turn))
    report["last_answer"] = time.time()
    await asyncio.sleep(IDLE_SECONDS)
    return report


async def serve(order: dict[str, Any]) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    # The defaults of vllm.LLM: the batch sizes of an engine that is to be fast.
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(**order["engine"]), usage_context=UsageContext.LLM_CLASS
    )
    try:
        config = engine.vllm_config
        vocabulary = config.model_config.get_vocab_size()
        report = await measure(partial(ask, engine), vocabulary, cache_facts(config), order)
    finally:
        engine.shutdown()
    Path(order["report"]).write_text(json.dumps(report))


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
