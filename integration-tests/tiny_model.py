"""Makes models small enough to test with: real architectures, random weights, a tokenizer.

Nothing is downloaded. The weights are seeded, so that every machine makes the same model,
and scaled so that greedy answers wander instead of repeating one token: an answer that
repeats itself would not notice a block read from the wrong place.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
BYTES = 256
VOCABULARY = BYTES + len(SPECIAL_TOKENS)
END_OF_TEXT = BYTES  # Special tokens follow the bytes.

# Of 100 tokens in a row about 75 differ; at 1.5 it is 10, and at 1.0 every answer soon
# repeats two tokens. Beyond 2.5 little changes.
SHARPNESS = 2.5

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyModel:
    """One model to write: its name, its config.json, and the seed of its weights."""

    name: str
    config: dict[str, Any]
    seed: int = 0
    layers: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", self.config["num_hidden_layers"])

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes in float32, over all layers."""
        heads, width = self.config["num_key_value_heads"], self.config["head_dim"]
        return int(self.layers * heads * width * 2 * 4)


# Wide enough for grouped-query attention (4 heads over 2), narrow enough for a CPU. A token
# takes 4 KiB of cache, so that a few thousand tokens already span many extents.
_SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "hidden_act": "silu",
    "bos_token_id": None,
    "eos_token_id": END_OF_TEXT,
    "pad_token_id": END_OF_TEXT + 3,
    "attention_bias": False,
}

FULL_ATTENTION = TinyModel(
    name="tiny-qwen3",
    config={"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **_SHAPE},
)

SLIDING_WINDOW = TinyModel(
    name="tiny-mistral-window-64",
    config={
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 64,
        **_SHAPE,
    },
    seed=1,
)


def write(model: TinyModel, into: Path) -> Path:
    """Write a model's directory below `into`, unless it is there, and return it."""
    target = into / model.name
    if target.exists():
        return target
    unfinished = into / f".{model.name}.{os.getpid()}"
    unfinished.mkdir(parents=True)
    (unfinished / "config.json").write_text(json.dumps(model.config, indent=2))
    write_tokenizer(unfinished)
    _write_weights(model, unfinished)
    try:
        unfinished.rename(target)  # Whole or not at all: tests may run side by side.
    except OSError:
        shutil.rmtree(unfinished)
    return target


def write_tokenizer(target: Path, more: Sequence[str] = ()) -> None:
    """Write a tokenizer of bytes and the special tokens, `more` behind the usual ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # One token a byte, no merges: every text has a length known beforehand.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in (*SPECIAL_TOKENS, *more)]
    )
    tokenizer.save(str(target / "tokenizer.json"))
    (target / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": SPECIAL_TOKENS[0],
                "pad_token": SPECIAL_TOKENS[3],
                "chat_template": CHAT_TEMPLATE,
                "model_max_length": _SHAPE["max_position_embeddings"],
            },
            indent=2,
        )
    )


def _write_weights(model: TinyModel, target: Path) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(model.seed)
    config = model.config
    width, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]

    def random(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn(rows, columns, generator=generator)
        return drawn * (gain / columns**0.5)

    weights: dict[str, torch.Tensor] = {
        "model.embed_tokens.weight": torch.randn(VOCABULARY, width, generator=generator) * 0.1,
        "model.norm.weight": torch.ones(width),
        "lm_head.weight": random(VOCABULARY, width, gain=3.0),
    }
    for layer in range(model.layers):
        name = f"model.layers.{layer}"
        weights |= {
            f"{name}.input_layernorm.weight": torch.ones(width),
            f"{name}.post_attention_layernorm.weight": torch.ones(width),
            # What attention brings back outweighs the token itself, and the queries are
            # sharp: the next token then depends on the whole context, not on the last one.
            f"{name}.self_attn.q_proj.weight": random(queries, width, gain=SHARPNESS),
            f"{name}.self_attn.k_proj.weight": random(keys, width, gain=SHARPNESS),
            f"{name}.self_attn.v_proj.weight": random(keys, width, gain=2.0),
            f"{name}.self_attn.o_proj.weight": random(width, queries, gain=2.0),
            f"{name}.mlp.gate_proj.weight": random(inner, width),
            f"{name}.mlp.up_proj.weight": random(inner, width),
            f"{name}.mlp.down_proj.weight": random(width, inner),
        }
        if config["model_type"] == "qwen3":
            # These norms undo the projections' gain, so the sharpness is theirs to give.
            for norm in ("q_norm", "k_norm"):
                sharp = torch.full((config["head_dim"],), SHARPNESS)
                weights[f"{name}.self_attn.{norm}.weight"] = sharp
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
