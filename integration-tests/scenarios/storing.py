"""A connector keeps what prompts left in the cache, and brings it back."""

from __future__ import annotations

from typing import Any

from scenarios.greedy import first_tokens
from scenarios.prompts import prompt
from session import Session


def stored_and_loaded(session: Session, requests: int = 36) -> dict[str, Any]:
    """Send a crowd, forget all prefixes, and send it again: the second time the connector has
    them."""
    # vLLM's example connector fails with prompts that fill no block.
    prompts = [prompt(f"kept-{number}", 70 + 9 * number) for number in range(requests)]
    lengths = [10 + number for number in range(requests)]
    rounds = []
    for _ in range(2):
        outputs = session.greedy(prompts, lengths)
        rounds.append(
            {
                "tokens": first_tokens(outputs),
                "cached_tokens": sum(output.num_cached_tokens or 0 for output in outputs),
            }
        )
        session.llm.reset_prefix_cache()
    return {"rounds": rounds}
