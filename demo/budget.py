"""How much memory two models share, from what one of them needs at its peak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from demo.plan import BLOCK_TOKENS, Plan

FLOAT32_BYTES = 4

ROOM = 1.3
"""The budget over what one model needs at its peak: too little for two peaks at a time, and half
of it too little for one."""


@dataclass(frozen=True)
class Budget:
    """Memory for the KV caches of both models together. Sizes are bytes."""

    block_bytes: int
    conversations: int
    """One model's peak: what it has to hold at a time, a block each."""

    @property
    def one_peak(self) -> int:
        """What one model needs at its peak. vLLM keeps one block for itself, SGLang a page."""
        return (self.conversations + 1) * self.block_bytes

    @property
    def shared(self) -> int:
        """What both have together."""
        return int(ROOM * self.one_peak)

    @property
    def half(self) -> int:
        """What each has where the budget is split: whole blocks, as vLLM takes them."""
        return self.shared // 2 // self.block_bytes * self.block_bytes

    @property
    def conversations_in_half(self) -> int:
        """How many of the conversations half of the budget holds at a time."""
        return self.half // self.block_bytes - 1


def budget_for(model: str, plan: Plan) -> Budget:
    """The budget for two servers of a model. Raises OSError where there is no such model."""
    from transformers import AutoConfig

    text: Any = AutoConfig.from_pretrained(model).get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    keys_and_values = 2 * text.num_hidden_layers * kv_heads * head_size
    return Budget(keys_and_values * FLOAT32_BYTES * BLOCK_TOKENS, plan.at_once)
