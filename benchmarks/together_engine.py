"""The program in an engine's process for benchmarks.together: vLLM's or SGLang's, told by lines.

Started with one argument, the order as JSON. Each line of its input is a burst, {"turn",
"requests"}; each is answered by a line in the order's file. The end of the input ends the engine.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.solo_engine import Ask, play
from benchmarks.solo_prompts import Prompts


async def obey(put: Ask, vocabulary: int, order: dict[str, Any]) -> None:
    """Plays bursts until nobody tells of another."""
    prompts = Prompts(order, vocabulary)
    loop = asyncio.get_running_loop()
    with Path(order["answers"]).open("a", buffering=1) as answers:
        answers.write("{}\n")
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            burst = json.loads(line)
            turn = burst["turn"]
            try:
                answer = await play(put, f"turn{turn}", prompts.burst(turn, burst["requests"]))
            except Exception as error:  # whatever an engine raises is a failed request
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer) + "\n")


async def vllm(order: dict[str, Any]) -> None:
    """vLLM's engine."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    from benchmarks.solo_engine import ask

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(**order["engine"]), usage_context=UsageContext.LLM_CLASS
    )
    try:
        vocabulary = engine.vllm_config.model_config.get_vocab_size()
        await obey(partial(ask, engine), vocabulary, order)
    finally:
        engine.shutdown()


def sglang(order: dict[str, Any]) -> None:
    """SGLang's engine."""
    from sglang.srt.entrypoints.engine import Engine

    from benchmarks.solo_sglang import ask

    engine = Engine(**order["engine"])
    try:
        vocabulary = engine.tokenizer_manager.model_config.vocab_size
        engine.loop.run_until_complete(obey(partial(ask, engine), vocabulary, order))
    finally:
        engine.shutdown()


def main() -> None:
    order = json.loads(sys.argv[1])
    if order["serving"] == "vllm":
        asyncio.run(vllm(order))
    else:
        sglang(order)


if __name__ == "__main__":
    main()
