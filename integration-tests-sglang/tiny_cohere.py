"""Writes a small Cohere 2 with random weights that asks SGLang for two pools: one for the layers
that see a sliding window, one for the others (SGLang 0.5.23 reads this of a configuration)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import Cohere2Config, Cohere2ForCausalLM

#: SGLang compiles this model's norm, for which a test has no time.
SURROUNDINGS = {"TORCHDYNAMO_DISABLE": "1"}


def write(folder: Path, window: int = 64) -> Path:
    """Writes configuration and weights; returns the model's folder."""
    torch.manual_seed(0)
    config = Cohere2Config(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention"],
        logit_scale=1.0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    where = folder / "cohere"
    Cohere2ForCausalLM(config).to(torch.float32).save_pretrained(where)
    file = where / "config.json"
    wish = {"is_hybrid_swa": True, "hybrid_layer_pattern": [1, 0]}
    file.write_text(json.dumps({**json.loads(file.read_text()), **wish}))
    return where
