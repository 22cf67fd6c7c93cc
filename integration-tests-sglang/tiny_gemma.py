"""Writes a small Gemma 3 with random weights, every other layer of which sees a sliding window."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig


def write(folder: Path, window: int = 64) -> Path:
    """Writes configuration and weights; returns the model's folder."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=8192,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention"],
        bos_token_id=1,
        eos_token_id=2,
    )
    where = folder / "gemma"
    Gemma3ForCausalLM(config).to(torch.float32).save_pretrained(where)
    return where
