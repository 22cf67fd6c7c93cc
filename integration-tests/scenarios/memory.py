"""Loads that swell and ebb, watched from /proc."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from scenarios.prompts import prompt
from session import Session

SAMPLE_EVERY = 10  # steps; reading smaps takes a few milliseconds, a step about as long

# Memory goes back behind a fence and on another thread, so a freed block counts as live for
# as many steps more: about a tenth of a second.
GOING = 10


def grow_and_shrink(session: Session, requests: int = 48) -> dict[str, Any]:
    """Answer a crowd whose requests end one after another, sampling memory and live blocks."""
    engine = session.engine
    for number in range(requests):
        request = {"prompt_token_ids": prompt(f"grow-{number}", 100 + 8 * number)}
        engine.add_request(f"grow-{number}", request, session.greedy_parameters(10 + 5 * number))
    samples = []
    lately: deque[int] = deque(maxlen=GOING)
    steps = 0
    while engine.has_unfinished_requests():
        engine.step()
        lately.append(session.live_blocks())
        steps += 1
        if steps % SAMPLE_EVERY == 0:
            samples.append({"live": max(lately), **session.memory().as_dict()})
    return {
        "samples": samples,
        "memory_one_second_later": session.memory_after(1.0).as_dict(),
    }


def lie_idle(session: Session, seconds: float = 1.0) -> dict[str, Any]:
    return {"memory_one_second_later": session.memory_after(seconds).as_dict()}


def forget(session: Session) -> dict[str, Any]:
    """Drop all prefixes and lie idle."""
    was_reset = bool(session.llm.reset_prefix_cache())
    return {"was_reset": was_reset, "memory_one_second_later": session.memory_after(1.0).as_dict()}


def wait_to_be_killed(session: Session) -> dict[str, Any]:
    """Hold blocks of an unfinished answer until somebody kills this process."""
    request = {"prompt_token_ids": prompt("unfinished", 500)}
    session.engine.add_request("unfinished", request, session.greedy_parameters(4000))
    for _ in range(5):
        session.engine.step()
    print("waiting to be killed", flush=True)
    time.sleep(600)
    return {}
