"""Sounds for a model that has an encoder beside its decoder."""

from __future__ import annotations

from typing import Any

from scenarios.greedy import first_tokens
from scenarios.prompts import prompt
from session import Session

RATE = 16_000


def transcribe(session: Session, requests: int = 32, seconds: int = 4) -> dict[str, Any]:
    """Send noises of their own, with beginnings of an answer of unlike lengths."""
    import numpy as np

    asked = []
    for number in range(requests):
        noise = np.random.default_rng(number).standard_normal(RATE * seconds).astype("float32")
        # Of another colour each, or the encoder would see the same in all of them.
        noise = (
            np.cumsum(noise) * 0.02
            if number % 2
            else noise * np.sin(np.arange(noise.size) / (3 + number))
        )
        asked.append(
            {
                "encoder_prompt": {
                    "prompt": "",
                    "multi_modal_data": {"audio": (noise.astype("float32"), RATE)},
                },
                "decoder_prompt": {"prompt_token_ids": prompt(f"spoken-{number}", 1 + 3 * number)},
            }
        )
    parameters = [session.greedy_parameters(20 + 5 * number) for number in range(requests)]
    outputs = session.llm.generate(asked, parameters, use_tqdm=False)
    return {"tokens": first_tokens(outputs)}
