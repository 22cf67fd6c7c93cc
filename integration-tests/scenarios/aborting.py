"""Requests that leave in mid-answer, beside requests that stay."""

from __future__ import annotations

from typing import Any

from scenarios.prompts import prompt
from session import Session


def abort_half(session: Session, requests: int = 16, steps: int = 30) -> dict[str, Any]:
    """Let all of them answer for some steps, abort every second one, finish the others."""
    engine = session.engine
    for number in range(requests):
        request = {"prompt_token_ids": prompt(f"abort-{number}", 20 + 25 * number)}
        engine.add_request(f"abort-{number}", request, session.greedy_parameters(120))
    for _ in range(steps):
        engine.step()
    held = session.live_blocks()
    engine.abort_request([f"abort-{number}" for number in range(0, requests, 2)])
    held_after_abort = session.live_blocks()

    tokens: dict[str, list[int]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished and output.outputs[0].finish_reason != "abort":
                tokens[output.request_id] = list(output.outputs[0].token_ids)
    return {"tokens": tokens, "held": held, "held_after_abort": held_after_abort}
