"""Writes what goes beside a small Llama: LoRA adapters, and a head that guesses its next tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_kinds

RANK = 8


def lora(into: Path, seed: int) -> Path:
    """Write an adapter to the queries and values of tiny_kinds.LLAMA."""
    import torch
    from safetensors.torch import save_file

    shape = tiny_kinds.LLAMA.config
    widths = {
        "q_proj": shape["num_attention_heads"] * shape["head_dim"],
        "v_proj": shape["num_key_value_heads"] * shape["head_dim"],
    }
    target = into / f"adapter-{seed}"
    target.mkdir()
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(shape["num_hidden_layers"]):
        for name, width in widths.items():
            of = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            drawn = torch.randn(RANK, shape["hidden_size"], generator=generator)
            weights[f"{of}.lora_A.weight"] = drawn / shape["hidden_size"] ** 0.5
            weights[f"{of}.lora_B.weight"] = torch.randn(width, RANK, generator=generator)
    save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
    described = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": list(widths),
        "bias": "none",
    }
    (target / "adapter_config.json").write_text(json.dumps(described))
    return target


def eagle(into: Path) -> Path:
    """Write an EAGLE head of one layer for tiny_kinds.LLAMA: its guesses are random, too."""
    import torch
    from safetensors.torch import load_file, save_file

    whole = tiny_kinds.write(tiny_kinds.LLAMA, into)
    weights: dict[str, Any] = {}
    for name, weight in load_file(whole / "model.safetensors").items():
        # The first layer, without the norm before it, and the target's own embeddings.
        if name.startswith("model.layers.0.") and "input_layernorm" not in name:
            weights[name.removeprefix("model.")] = weight
    weights["embed_tokens.weight"] = load_file(whole / "model.safetensors")[
        "model.embed_tokens.weight"
    ]
    width = tiny_kinds.LLAMA.config["hidden_size"]
    generator = torch.Generator().manual_seed(1)
    weights["fc.weight"] = torch.randn(width, 2 * width, generator=generator) / width**0.5
    target = into / "tiny-eagle"
    target.mkdir()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((whole / "config.json").read_text())
    config["num_hidden_layers"] = 1
    (target / "config.json").write_text(json.dumps(config))
    return target
