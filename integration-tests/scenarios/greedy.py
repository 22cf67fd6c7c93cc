"""Greedy answers, whose tokens must not depend on where the blocks lie."""

from __future__ import annotations

from typing import Any

from scenarios.prompts import mixed, prompt
from session import Session


def first_tokens(outputs: list[Any]) -> list[list[int]]:
    """Return the token ids of each request's first answer."""
    return [list(output.outputs[0].token_ids) for output in outputs]


def mixed_lengths(session: Session, requests: int = 200) -> dict[str, Any]:
    """Send many requests at once: prompts of 1 to 600 tokens, answers of 1 to 200."""
    prompts, lengths = mixed(requests, longest=600, most=200)
    preempted = session.metric("vllm:num_preemptions")
    outputs = session.greedy(prompts, lengths)
    return {
        "tokens": first_tokens(outputs),
        "preemptions": session.metric("vllm:num_preemptions") - preempted,
        "memory_one_second_later": session.memory_after(1.0).as_dict(),
    }


def long_answer(session: Session, length: int = 4000) -> dict[str, Any]:
    """Let one answer cross many blocks, one token at a time."""
    return {"tokens": first_tokens(session.greedy([prompt("long-answer", 20)], [length]))}


def long_prompt_in_chunks(session: Session, length: int = 2000) -> dict[str, Any]:
    """Prefill one prompt in several steps, and count the steps before its first token."""
    engine = session.engine
    request = {"prompt_token_ids": prompt("long-prompt", length)}
    engine.add_request("long-prompt", request, session.greedy_parameters(32))
    steps, steps_to_first, tokens = 0, 0, []
    while engine.has_unfinished_requests():
        outputs = engine.step()
        steps += 1
        if outputs and outputs[0].outputs[0].token_ids:
            steps_to_first = steps_to_first or steps
            tokens = first_tokens(outputs)
    return {"tokens": tokens, "steps_to_first_token": steps_to_first}
