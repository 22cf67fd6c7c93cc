"""The program in an engine's process for benchmarks.tokens.

Started with one argument, the order as JSON.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

SHORTEST = 8
#: Requests that begin with the same tokens.
GROUP = 8


def requests(order: dict[str, Any], vocabulary: int) -> list[tuple[list[int], int]]:
    """(prompt, output tokens) of every request. In groups of eight, the first half of each prompt
    is the group's; every other group repeats a phrase, for speculation to find."""
    generator = random.Random(20)
    made: list[tuple[list[int], int]] = []
    while len(made) < order["requests"]:
        half = order["prompt_tokens"] // 2
        shared = [generator.randrange(3, vocabulary) for _ in range(half)]
        if len(made) // GROUP % 2:
            shared = (shared[:10] * half)[:half]
        for _ in range(GROUP):
            own = generator.randint(SHORTEST, half)
            prompt = shared + [generator.randrange(3, vocabulary) for _ in range(own)]
            made.append((prompt, generator.randint(SHORTEST, order["output_tokens"])))
    return made[: order["requests"]]


def generate(
    engine: Any, scheduler: Any, wanted: list[tuple[list[int], int]], steps: Any
) -> list[list[int]]:
    """Every request's tokens. `steps` digests how many requests ran and waited, and how far they
    were, after each step: engines with the same digest put the same requests into each batch."""
    from vllm import SamplingParams

    for number, (prompt, tokens) in enumerate(wanted):
        sampling = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        engine.add_request(str(number), {"prompt_token_ids": prompt}, sampling)
    answers: dict[str, list[int]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                answers[output.request_id] = list(output.outputs[0].token_ids)
        computed = sum(request.num_computed_tokens for request in scheduler.running)
        steps.update(f"{len(scheduler.running)} {len(scheduler.waiting)} {computed};".encode())
    return [answers[str(number)] for number in range(len(wanted))]


def main() -> None:
    order = json.loads(sys.argv[1])
    from vllm import LLM

    llm = LLM(**order["engine"])
    engine = llm.llm_engine
    # In one process; there is no public way to it.
    scheduler = engine.engine_core.engine_core.scheduler
    steps = hashlib.sha256()
    wanted = requests(order, llm.llm_engine.vllm_config.model_config.get_vocab_size())
    parts = len(order["sleep"]) + 1
    size = -(-len(wanted) // parts)
    tokens: list[list[int]] = []
    for part in range(parts):
        if part:
            llm.sleep(level=order["sleep"][part - 1])
            llm.wake_up()
            if order["sleep"][part - 1] == 2:
                # Level 2 has thrown the weights away.
                llm.collective_rpc("reload_weights")
        tokens += generate(engine, scheduler, wanted[part * size : (part + 1) * size], steps)
    Path(order["report"]).write_text(
        json.dumps(
            {
                "tokens": tokens,
                "scheduler": type(scheduler).__name__,
                "steps": steps.hexdigest(),
            }
        )
    )
    # In one process nobody else does.
    engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
