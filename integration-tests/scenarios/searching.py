"""Answers with their probabilities, and the best of many."""

from __future__ import annotations

from typing import Any

from scenarios.greedy import first_tokens
from scenarios.prompts import mixed, prompt
from session import Session


def logprobs(session: Session, requests: int = 24) -> dict[str, Any]:
    """Ask for the probabilities of prompts and answers, too."""
    from vllm import SamplingParams

    prompts, lengths = mixed(requests, longest=300, most=60, crowd="weighed")
    outputs = session.generate(
        prompts,
        [
            SamplingParams(
                temperature=0, max_tokens=length, ignore_eos=True, logprobs=3, prompt_logprobs=2
            )
            for length in lengths
        ],
    )
    return {
        "tokens": first_tokens(outputs),
        "answers": [_plain(output.outputs[0].logprobs) for output in outputs],
        "prompts": [_plain(output.prompt_logprobs[1:]) for output in outputs],
    }


def _plain(positions: Any) -> list[dict[str, float]]:
    # As tokens' numbers; the report is JSON.
    return [
        {str(token): entry.logprob for token, entry in position.items()} for position in positions
    ]


def beams(session: Session, prompts: int = 8, width: int = 4) -> dict[str, Any]:
    """Search the best answers to some prompts: beams share blocks, part, and are dropped."""
    from vllm.sampling_params import BeamSearchParams

    asked = [{"prompt_token_ids": prompt(f"beam-{n}", 40 + 30 * n)} for n in range(prompts)]
    parameters = BeamSearchParams(beam_width=width, max_tokens=40, ignore_eos=True)
    found = session.llm.beam_search(asked, parameters)
    return {"tokens": [[list(beam.tokens) for beam in each.sequences] for each in found]}
