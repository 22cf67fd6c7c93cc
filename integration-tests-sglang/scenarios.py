"""What an engine is asked to do. Each returns one answer a request: its tokens, or None."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from typing import Any

import kv_memory
import neighbour

GREEDY = {"temperature": 0, "ignore_eos": True}

Answers = list[list[int] | None]


def _prompt(source: random.Random, length: int) -> list[int]:
    return [source.randrange(3, 256) for _ in range(length)]


def _ask(engine: Any, prompts: list[list[int]], lengths: list[int]) -> Answers:
    wanted = [{**GREEDY, "max_new_tokens": length} for length in lengths]
    return [
        found["output_ids"] for found in engine.generate(input_ids=prompts, sampling_params=wanted)
    ]


def mixed(engine: Any) -> Answers:
    """200 requests of all lengths in four waves; half of them begin like others before them."""
    source = random.Random(1)
    heads = [_prompt(source, length) for length in (40, 130, 300)]
    answers: Answers = []
    for _ in range(4):
        prompts = [
            [*(source.choice(heads) if n % 2 else []), *_prompt(source, source.randrange(1, 90))]
            for n in range(50)
        ]
        answers += _ask(engine, prompts, [source.randrange(1, 25) for _ in prompts])
    return answers


def long_prompts(engine: Any) -> Answers:
    """Prompts of several chunks each, beside short ones."""
    source = random.Random(2)
    prompts = [_prompt(source, length) for length in (900, 12, 1500, 700, 33)]
    return _ask(engine, prompts, [20] * len(prompts))


def long_answer(engine: Any) -> Answers:
    """4,000 tokens out."""
    return _ask(engine, [_prompt(random.Random(3), 20)], [4000])


def crowd(engine: Any) -> Answers:
    """More than a small budget holds at once."""
    source = random.Random(4)
    prompts = [_prompt(source, source.randrange(20, 200)) for _ in range(24)]
    return _ask(engine, prompts, [300] * len(prompts))


def beside_a_neighbour(engine: Any) -> Answers:
    """The crowd while somebody else holds most of the device, and wants it for a while longer."""
    with neighbour.holding(neighbour.MOST):
        return crowd(engine)


#: Of a prompt that comes in by many chunks, and its answer.
_LONG = (4000, 8)


def long_prompt(engine: Any) -> Answers:
    """One prompt of many chunks."""
    return _ask(engine, [_prompt(random.Random(7), _LONG[0])], [_LONG[1]])


def long_prompt_beside_a_neighbour(engine: Any) -> Answers:
    """The same; when some of it is in, somebody comes and takes all that it can have until the
    answer is there."""
    answers: Answers = engine.loop.run_until_complete(_half_in_beside_a_neighbour(engine))
    return answers


async def _half_in_beside_a_neighbour(engine: Any) -> Answers:
    prompt = _prompt(random.Random(7), _LONG[0])
    wanted = {**GREEDY, "max_new_tokens": _LONG[1]}
    asked = asyncio.ensure_future(engine.async_generate(input_ids=prompt, sampling_params=wanted))
    some = neighbour.live_bytes() + 2 * 262144
    while neighbour.live_bytes() < some:
        await asyncio.sleep(0.002)
    answered = threading.Event()
    it = threading.Thread(target=neighbour.grasp, args=(answered,))
    assert not asked.done()
    it.start()
    try:
        answer = await asyncio.wait_for(asked, 45)
    finally:
        answered.set()
        it.join()
    return [answer["output_ids"]]


def pressed_while_idle(engine: Any) -> Answers:
    """Prefixes are kept; then a neighbour wants the memory, and the engine has nothing to do.
    Returns the bytes that the engine still held a second later, in place of tokens."""
    crowd(engine)
    with neighbour.holding(neighbour.MOST):
        time.sleep(1.0)
        return [[kv_memory.of_tree(os.getpid()).resident]]


def aborts(engine: Any) -> Answers:
    """Twelve requests, every other one given up in the midst of its answer."""
    answers: Answers = engine.loop.run_until_complete(_aborts(engine))
    return answers


async def _aborts(engine: Any) -> Answers:
    source = random.Random(5)
    prompts = [_prompt(source, 60) for _ in range(12)]

    async def finished(prompt: list[int]) -> list[int]:
        answer = await engine.async_generate(
            input_ids=prompt, sampling_params={**GREEDY, "max_new_tokens": 120}
        )
        tokens: list[int] = answer["output_ids"]
        return tokens

    async def given_up(number: int, prompt: list[int]) -> None:
        stream = await engine.async_generate(
            input_ids=prompt,
            sampling_params={**GREEDY, "max_new_tokens": 2000},
            stream=True,
            rid=f"given-up-{number}",
        )
        async for _ in stream:
            engine.tokenizer_manager.abort_request(rid=f"given-up-{number}")

    each = (given_up(n, prompt) if n % 2 else finished(prompt) for n, prompt in enumerate(prompts))
    return list(await asyncio.gather(*each))


def flush(engine: Any) -> Answers:
    """Drops every prefix."""
    engine.flush_cache()
    return []


def release_and_resume(engine: Any) -> Answers:
    """Gives memory back by the engine's own request, takes it again, and answers."""
    engine.release_memory_occupation()
    engine.resume_memory_occupation()
    return _ask(engine, [_prompt(random.Random(6), 50)], [10])


def metrics(engine: Any) -> Answers:
    """What a scrape of SGLang's ``/metrics`` finds of ours: the bytes held, in place of tokens."""
    from prometheus_client import CollectorRegistry, multiprocess

    collect: Any = multiprocess.MultiProcessCollector
    time.sleep(2.0)  # copied once a second
    registry = CollectorRegistry()
    collect(registry)
    samples = [sample for family in registry.collect() for sample in family.samples]
    return [[int(found.value)] for found in samples if found.name == "kvcached_lease_held_bytes"]


def idle(engine: Any) -> Answers:
    """Nothing, for a while: SGLang checks its sums when it is idle."""
    return []
