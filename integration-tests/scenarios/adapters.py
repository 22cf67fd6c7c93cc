"""Requests to one model with several LoRA adapters, side by side."""

from __future__ import annotations

from typing import Any

from scenarios.greedy import first_tokens
from scenarios.prompts import mixed
from session import Session


def adapters(session: Session, paths: list[str], requests: int = 36) -> dict[str, Any]:
    """Ask the model and each of its adapters in turn, twice the same prompt for every one of them:
    a prefix that one adapter left in the cache is nobody else's."""
    from vllm.lora.request import LoRARequest

    kinds = [None, *(LoRARequest(f"adapter-{n}", n + 1, path) for n, path in enumerate(paths))]
    prompts, lengths = mixed(requests // len(kinds), longest=400, most=100, crowd="adapted")
    asked = [
        (prompt, length, kind)
        for prompt, length in zip(prompts, lengths, strict=True)
        for kind in kinds
    ]
    outputs = session.llm.generate(
        [{"prompt_token_ids": prompt} for prompt, _, _ in asked],
        [session.greedy_parameters(length) for _, length, _ in asked],
        lora_request=[kind for _, _, kind in asked],
        use_tqdm=False,
    )
    return {"tokens": first_tokens(outputs), "kinds": len(kinds)}
