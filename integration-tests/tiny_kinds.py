"""Small models of every kind of KV cache, with random weights, made by transformers' own classes.

As in `tiny_model.py`, weights are seeded and scaled so that greedy answers wander. Where a kind
needs other sizes than the usual ones, its entry says why.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny_model
from tiny_model import SHARPNESS, VOCABULARY

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 8192,
    "bos_token_id": None,
    "eos_token_id": tiny_model.END_OF_TEXT,
    "pad_token_id": tiny_model.END_OF_TEXT + 3,
}
_ATTENTION: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
_WINDOW, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class TinyKind:
    """A model to write: transformers' names of its configuration and its class."""

    name: str
    config_class: str
    model_class: str
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


GEMMA_3 = TinyKind(
    "tiny-gemma3",
    "Gemma3TextConfig",
    "Gemma3ForCausalLM",
    {
        **_ATTENTION,
        "num_hidden_layers": 6,
        "sliding_window": 64,
        "layer_types": [_WINDOW, _WINDOW, _FULL, _WINDOW, _WINDOW, _FULL],
        "query_pre_attn_scalar": 64,
    },
)

# Layers of two head sizes, and the last two read the cache of others.
GEMMA_4 = TinyKind(
    "tiny-gemma4",
    "Gemma4TextConfig",
    "Gemma4ForCausalLM",
    {
        **_ATTENTION,
        "num_hidden_layers": 6,
        "sliding_window": 64,
        "layer_types": [_WINDOW, _FULL, _WINDOW, _FULL, _WINDOW, _FULL],
        "num_kv_shared_layers": 2,
        "global_head_dim": 128,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": VOCABULARY,
    },
)

GEMMA_3N = TinyKind(
    "tiny-gemma3n",
    "Gemma3nTextConfig",
    "Gemma3nForCausalLM",
    {
        **_ATTENTION,
        "num_hidden_layers": 6,
        "intermediate_size": 256,
        "sliding_window": 64,
        "layer_types": [_WINDOW, _FULL, _WINDOW, _FULL, _WINDOW, _FULL],
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": VOCABULARY,
        "laurel_rank": 16,
        "activation_sparsity_pattern": [0.0] * 6,
    },
)

# What vLLM's kernel for latents on a CPU takes: 512 and 64.
DEEPSEEK = TinyKind(
    "tiny-deepseek-v2",
    "DeepseekV2Config",
    "DeepseekV2ForCausalLM",
    {
        **_COMMON,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 64,
        "first_k_dense_replace": 4,
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 64,
        "n_shared_experts": 1,
    },
)

LLAMA_4 = TinyKind(
    "tiny-llama4",
    "Llama4TextConfig",
    "Llama4ForCausalLM",
    {
        **_ATTENTION,
        "num_hidden_layers": 4,
        "attention_chunk_size": 64,
        "intermediate_size_mlp": 256,
        "use_qk_norm": False,  # it would make attention too soft for answers that wander
        "num_local_experts": 2,
    },
)

LLAMA = TinyKind(
    "tiny-llama", "LlamaConfig", "LlamaForCausalLM", {**_ATTENTION, "num_hidden_layers": 4}
)

MAMBA_2 = TinyKind(
    "tiny-mamba2",
    "Mamba2Config",
    "Mamba2ForCausalLM",
    {
        **_COMMON,
        "hidden_size": 128,
        "num_heads": 8,
        "head_dim": 32,
        "state_size": 16,
        "n_groups": 1,
        "num_hidden_layers": 4,
    },
)

MAMBA = TinyKind(
    "tiny-mamba",
    "MambaConfig",
    "MambaForCausalLM",
    {**_COMMON, "hidden_size": 128, "state_size": 16, "num_hidden_layers": 4},
)

LFM_2 = TinyKind(
    "tiny-lfm2",
    "Lfm2Config",
    "Lfm2ForCausalLM",
    {
        **_COMMON,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "layer_types": ["conv", _FULL, "conv", _FULL],
        "tie_word_embeddings": False,
        # vLLM reads these older names.
        "conv_dim": 256,
        "block_dim": 256,
    },
)

QWEN_3_NEXT = TinyKind(
    "tiny-qwen3-next",
    "Qwen3NextConfig",
    "Qwen3NextForCausalLM",
    {
        **_ATTENTION,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", _FULL, "linear_attention", _FULL],
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        # What vLLM's kernel on a CPU takes.
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
    },
)

FALCON_H1 = TinyKind(
    "tiny-falcon-h1",
    "FalconH1Config",
    "FalconH1ForCausalLM",
    {
        **_ATTENTION,
        "num_hidden_layers": 4,
        "mamba_d_ssm": 128,
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
    },
)

GPT_OSS = TinyKind(
    "tiny-gpt-oss",
    "GptOssConfig",
    "GptOssForCausalLM",
    {
        **_ATTENTION,
        "num_hidden_layers": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 64,
        "layer_types": [_WINDOW, _FULL, _WINDOW, _FULL],
    },
)

BERT = TinyKind(
    "tiny-bert",
    "BertConfig",
    "BertModel",
    {
        **_COMMON,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 1024,
    },
)


def write(kind: TinyKind, into: Path) -> Path:
    """Write a model's directory below `into`, unless it is there, and return it."""
    target = into / kind.name
    if target.exists():
        return target
    unfinished = into / f".{kind.name}.{os.getpid()}"
    unfinished.mkdir(parents=True)
    tiny_model.write_tokenizer(unfinished)
    _write_model(kind, unfinished)
    try:
        unfinished.rename(target)
    except OSError:
        shutil.rmtree(unfinished)
    return target


def _write_model(kind: TinyKind, target: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(kind.seed)
    config = getattr(transformers, kind.config_class)(**kind.config)
    model = getattr(transformers, kind.model_class)(config).to(torch.float32)
    generator = torch.Generator().manual_seed(kind.seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _sharpen(name, weight, generator)
    model.save_pretrained(target)


# By the end of a weight's name: what it draws is multiplied by this. See tiny_model.py.
_GAINS = {
    "q_proj.weight": SHARPNESS,
    "k_proj.weight": SHARPNESS,
    "v_proj.weight": 2.0,
    "kv_a_proj_with_mqa.weight": SHARPNESS,
    "kv_b_proj.weight": 4.0,
    "o_proj.weight": 2.0,
    "out_proj.weight": 2.0,
    "lm_head.weight": 3.0,
}


_NORMS = tuple(f"{of}_{norm}.weight" for of in "qk" for norm in ("norm", "layernorm"))


def _sharpen(name: str, weight: Any, generator: Any) -> None:
    if name.endswith(_NORMS):
        weight.add_(SHARPNESS - 1)  # norms hold ones, or what is added to one
    elif weight.dim() == 2 and "embed" not in name and "A_log" not in name:
        gain = next((gain for end, gain in _GAINS.items() if name.endswith(end)), 1.0)
        weight.normal_(generator=generator).mul_(gain / weight.shape[1] ** 0.5)
