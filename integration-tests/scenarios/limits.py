"""Requests that each need nearly all of the memory that the engine may have."""

from __future__ import annotations

from typing import Any

from scenarios.greedy import first_tokens
from scenarios.prompts import prompt
from session import Session


def greatest_requests(session: Session, requests: int = 3) -> dict[str, Any]:
    """Send several requests at once, each as long as max_model_len lets it be."""
    longest = session.engine.vllm_config.model_config.max_model_len
    half = longest // 2
    prompts = [prompt(f"greatest-{number}", half) for number in range(requests)]
    return {"tokens": first_tokens(session.greedy(prompts, [longest - half] * requests))}


def overlong_prompt(session: Session) -> dict[str, Any]:
    """Send a prompt longer than max_model_len, and then one that fits."""
    from vllm.exceptions import VLLMValidationError

    longest = session.engine.vllm_config.model_config.max_model_len
    try:
        session.greedy([prompt("overlong", longest + 1)], [1])
        refusal = None
    except VLLMValidationError as error:
        refusal = str(error)
    after = first_tokens(session.greedy([prompt("fits", 100)], [20]))
    return {"refusal": refusal, "tokens": after}
