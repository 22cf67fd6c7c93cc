"""Requests that share beginnings, and the cache that remembers them."""

from __future__ import annotations

from typing import Any

from scenarios.greedy import first_tokens
from scenarios.prompts import prompt
from session import Session


def shared_prefixes(session: Session) -> dict[str, Any]:
    """Send two waves over four common prefixes; the second wave meets what the first left."""
    prefixes = [prompt(f"prefix-{number}", 320) for number in range(4)]
    tokens: list[list[int]] = []
    cached: list[int] = []
    for wave in range(2):
        prompts = [
            prefix + prompt(f"branch-{wave}-{index}-{branch}", 5 + 9 * branch)
            for index, prefix in enumerate(prefixes)
            for branch in range(5)
        ]
        outputs = session.greedy(prompts, [40] * len(prompts))
        tokens += first_tokens(outputs)
        cached.append(sum(output.num_cached_tokens or 0 for output in outputs))
    return {"tokens": tokens, "cached_tokens": cached}


def reset_prefix_cache(session: Session) -> dict[str, Any]:
    """Ask the same thing three times, forgetting everything before the last."""
    question = [prompt("repeated", 400)]
    rounds = []
    was_reset = None
    for forget_first in (False, False, True):
        if forget_first:
            was_reset = bool(session.llm.reset_prefix_cache())
        output = session.greedy(question, [40])
        cached = output[0].num_cached_tokens or 0
        rounds.append({"tokens": first_tokens(output)[0], "cached_tokens": cached})
    return {"rounds": rounds, "was_reset": was_reset}
