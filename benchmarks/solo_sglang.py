"""The program in an engine's process for benchmarks.solo with SGLang, with the phases of
benchmarks/solo_engine.py.

Started with one argument, the order as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.solo_engine import Answer, measure

if TYPE_CHECKING:
    from benchmarks.solo_prompts import Request

#: Tokens between two messages about one request. The first comes at once, for TTFT; a message a
#: token would measure the passing on of messages.
_STREAM_INTERVAL = 64


async def ask(engine: Any, name: str, request: Request, start: float) -> Answer:
    """Puts one request to the engine when it is due and waits for all of its answer."""
    await asyncio.sleep(max(0.0, start + request.due - time.perf_counter()))
    due, began = start + request.due, time.time()
    late = time.perf_counter() - due
    stream = await engine.async_generate(
        input_ids=request.prompt,
        sampling_params={"temperature": 0, "max_new_tokens": request.tokens, "ignore_eos": True},
        stream=True,
        rid=name,
    )
    first: tuple[float, int] | None = None
    tokens: list[int] = []
    async for output in stream:
        tokens = output["output_ids"]
        if first is None:
            # Whoever is late finds several tokens at once.
            first = time.perf_counter(), len(tokens)
    ended = time.perf_counter()
    if first is None or len(tokens) != request.tokens:
        raise RuntimeError(f"{name}: {len(tokens)} tokens came, {request.tokens} were asked for")
    return Answer(
        tokens=list(tokens),
        began=began,
        ended=time.time(),
        first_token_after=first[0] - due,
        between_tokens=(ended - first[0]) / max(1, len(tokens) - first[1]),
        late=late,
    )


def cache_facts(engine: Any) -> dict[str, Any]:
    """The whole KV cache: memory in vanilla SGLang, address space if elastic."""
    model, arguments = engine.tokenizer_manager.model_config, engine.server_args
    itemsize = 1 if "fp8" in arguments.kv_cache_dtype else model.dtype.itemsize
    layers, heads = model.num_hidden_layers, model.get_num_kv_heads(1)
    a_token = 2 * heads * model.head_dim * layers * itemsize
    tokens = engine.get_server_info()["max_total_num_tokens"]
    return {
        "kv_bytes": int(tokens * a_token),
        "kv_bytes_per_token": int(a_token),
        "keeps_prefixes": not arguments.disable_radix_cache,
    }


def serve(order: dict[str, Any]) -> None:
    """Starts the engine, measures, writes the report."""
    from sglang.srt.entrypoints.engine import Engine

    engine = Engine(stream_interval=_STREAM_INTERVAL, **order["engine"])
    try:
        vocabulary = engine.tokenizer_manager.model_config.vocab_size
        report = engine.loop.run_until_complete(
            measure(partial(ask, engine), vocabulary, cache_facts(engine), order)
        )
        # Only a hash of them would not say which kernels ran.
        report["settings"] = settings_of(engine)
    finally:
        engine.shutdown()
    Path(order["report"]).write_text(json.dumps(report))


def settings_of(engine: Any) -> dict[str, Any]:
    """What SGLang has made of its arguments, where that matters to a figure."""
    found = engine.get_server_info()
    names = (
        "attention_backend",
        "chunked_prefill_size",
        "disable_overlap_schedule",
        "disable_radix_cache",
        "enable_deterministic_inference",
        "kv_cache_dtype",
        "max_running_requests",
        "max_total_num_tokens",
        "mem_fraction_static",
        "page_size",
    )
    return {
        **{name: found.get(name) for name in names},
        "cuda_graphs": not found.get("disable_cuda_graph"),
    }


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
