"""The program in an engine's process for benchmarks.solo: builds a vllm.LLM, generates in rounds,
writes what it measured.

Started with one argument, the order as JSON.
"""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil

#: Time after the last round for memory to go back, in seconds.
IDLE_SECONDS = 2.5
SHORTEST = 16


def prompts(order: dict[str, Any], turn: int, vocabulary: int) -> list[tuple[list[int], int]]:
    """(prompt, output tokens) of one round's requests. Every round has prompts of its own, so
    that no prefix is known from the round before."""
    generator = random.Random(turn)
    return [
        (
            [
                generator.randrange(3, vocabulary)
                for _ in range(generator.randint(SHORTEST, order["prompt_tokens"]))
            ],
            generator.randint(SHORTEST, order["output_tokens"]),
        )
        for _ in range(order["requests"])
    ]


def processor_seconds() -> float:
    """Processor time of this process and of those it started."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    times = [member.cpu_times() for member in family]
    return float(sum(used.user + used.system for used in times))


def generate(llm: Any, order: dict[str, Any], turn: int) -> dict[str, Any]:
    """One round."""
    from vllm import SamplingParams

    requests = prompts(order, turn, llm.llm_engine.vllm_config.model_config.get_vocab_size())
    texts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    sampling = [
        SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        for _, tokens in requests
    ]
    processor = processor_seconds()
    began, clock = time.time(), time.perf_counter()
    outputs = llm.generate(texts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - clock
    processor = processor_seconds() - processor
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    first = [output.metrics.first_token_latency for output in outputs]
    return {
        "began": began,
        "ended": time.time(),
        "seconds": seconds,
        "processor_seconds": processor,
        "output_tokens": sum(map(len, tokens)),
        "output_tokens_per_second": sum(map(len, tokens)) / seconds,
        "ttft_median": statistics.median(first),
        "ttft": first,
        "tokens": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
    }


def kv_bytes(llm: Any) -> int:
    """The size of the whole KV cache: memory in vanilla vLLM, address space if elastic."""
    config = llm.llm_engine.vllm_config
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    from vllm.utils.torch_utils import get_dtype_size, kv_cache_dtype_str_to_dtype

    dtype = kv_cache_dtype_str_to_dtype(cache.cache_dtype, model)
    slots = cache.num_gpu_blocks * cache.block_size
    heads = model.get_num_kv_heads(parallel) * parallel.tensor_parallel_size
    return int(
        2
        * slots
        * heads
        * model.get_head_size()
        * model.get_num_layers(parallel)
        * get_dtype_size(dtype)
    )


def main() -> None:
    order = json.loads(sys.argv[1])
    from vllm import LLM

    llm = LLM(**order["engine"])
    ready = time.time()
    # The first round is not counted: it meets everything cold.
    rounds = [generate(llm, order, turn) for turn in range(order["rounds"] + 1)]
    time.sleep(IDLE_SECONDS)
    report = {
        "ready": ready,
        "warm_up": rounds[0],
        "rounds": rounds[1:],
        "idle": time.time(),
        "kv_bytes": kv_bytes(llm),
    }
    Path(order["report"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
