"""Several answers to one prompt, which share the prompt's blocks and then part."""

from __future__ import annotations

from typing import Any

from scenarios.prompts import prompt
from session import Session

ANSWERS = 4


def several_answers(session: Session, prompts: int = 6) -> dict[str, Any]:
    """Sample four seeded answers to each prompt, one prompt after another.

    One at a time, and short enough for four to be prefilled in one step: on a CPU, vLLM
    0.32 fails when a seeded request's prompt is prefilled in parts, for it then winds the
    random generator back, which torch's CPU generator cannot do.
    """
    from vllm import SamplingParams

    tokens: list[list[list[int]]] = []
    for number in range(prompts):
        parameters = SamplingParams(
            n=ANSWERS, temperature=1.0, seed=number, max_tokens=60, ignore_eos=True
        )
        (output,) = session.generate([prompt(f"sampled-{number}", 40 + 15 * number)], parameters)
        answers = sorted(output.outputs, key=lambda answer: int(answer.index))
        tokens.append([list(answer.token_ids) for answer in answers])
    return {"tokens": tokens}
