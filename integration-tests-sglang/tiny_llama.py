"""Writes a small Llama with random weights that do not change from run to run."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 256
#: Bytes of a token's KV: K and V, 2 layers, 2 heads of 16, in float32.
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4


def write(folder: Path, heads: int = 4, kv_heads: int = 2) -> Path:
    """Writes configuration and weights; returns the model's folder. Grouped-query attention by
    default, multi-head where both numbers are equal."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16 * heads,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    where = folder / f"llama-{heads}-{kv_heads}"
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(where)
    return where
