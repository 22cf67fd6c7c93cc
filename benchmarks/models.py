"""The models that a benchmark can name, beside any that vLLM can load."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).parent.parent

#: What all of ours have in common.
_COMMON: dict[str, Any] = {
    "rms_norm_eps": 1e-06,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_bias": False,
}

#: Models by their config.json alone; vLLM makes the weights up. The shapes of the larger two are
#: those of the config.json of Qwen/Qwen3-0.6B and meta-llama/Llama-3.1-8B on huggingface.co.
_MADE_UP: dict[str, dict[str, Any]] = {
    # Four layers of Qwen3, 256 wide: so small that what is not the model shows.
    "tiny": {
        **_COMMON,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 1024,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "qwen3-0.6b": {
        **_COMMON,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "llama-8b": {
        **_COMMON,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
}

#: What `--model` takes.
NAMES = f"{', '.join(_MADE_UP)} (random weights), smollm2 (the demo's), or vLLM's name or path"


@dataclass(frozen=True)
class Model:
    """What vLLM is given."""

    path: str
    load_format: str

    def engine_arguments(self) -> dict[str, Any]:
        """vLLM's arguments for it. Prompts are token ids: no tokenizer is needed, or fetched."""
        return {
            "model": self.path,
            "load_format": self.load_format,
            "skip_tokenizer_init": True,
        }

    def variables(self) -> dict[str, str]:
        """What an engine's environment needs: nobody asks the network for a model that is here."""
        return {"HF_HUB_OFFLINE": "1"} if Path(self.path).is_dir() else {}


def find(name: str, directory: Path) -> Model:
    """A model by one of NAMES; one of ours is written below `directory`."""
    if name in _MADE_UP:
        where = directory / name
        where.mkdir(exist_ok=True)
        (where / "config.json").write_text(json.dumps(_MADE_UP[name]))
        return Model(str(where), "dummy")
    if name == "smollm2":
        printed = subprocess.run(
            [sys.executable, "-m", "demo.model", "--print-path"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=_REPOSITORY,
        )
        return Model(printed.stdout.strip().splitlines()[-1], "auto")
    return Model(name, "auto")
