"""Embeddings: prompts that are read once and never answered."""

from __future__ import annotations

from typing import Any

from scenarios.prompts import mixed
from session import Session


def embed(session: Session, requests: int = 32) -> dict[str, Any]:
    prompts, _ = mixed(requests, longest=600, most=1, crowd="embedded")
    outputs = session.llm.embed([{"prompt_token_ids": each} for each in prompts], use_tqdm=False)
    return {
        "embeddings": [output.outputs.embedding for output in outputs],
        "memory_one_second_later": session.memory_after(1.0).as_dict(),
    }
