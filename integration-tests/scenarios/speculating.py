"""Requests whose next tokens can be guessed."""

from __future__ import annotations

from typing import Any

from scenarios.greedy import first_tokens
from scenarios.prompts import mixed, prompt
from session import Session


def guessed(session: Session, requests: int = 36) -> dict[str, Any]:
    """Send prompts that repeat themselves beside others, and count the guesses that held."""
    prompts, lengths = mixed(requests, longest=400, most=150, crowd="guessed")
    for number in range(0, requests, 2):
        prompts[number] = prompt(f"refrain-{number}", 12) * 20
    outputs = session.greedy(prompts, lengths)
    return {
        "tokens": first_tokens(outputs),
        "guessed": session.metric("vllm:spec_decode_num_draft_tokens"),
        "accepted": session.metric("vllm:spec_decode_num_accepted_tokens"),
    }
