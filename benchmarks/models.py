"""The models that a benchmark can name, beside any that vLLM can load."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).parent.parent

#: Four layers of Qwen3, 256 wide: so small that what is not the model shows.
_TINY: dict[str, Any] = {
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
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_bias": False,
}


@dataclass(frozen=True)
class Model:
    """What vLLM is given."""

    path: str
    load_format: str

    def engine_arguments(self) -> dict[str, Any]:
        return {"model": self.path, "load_format": self.load_format}


def find(name: str, directory: Path) -> Model:
    """`tiny` (made in `directory`, random weights), `smollm2` (the demo's), or vLLM's own name
    or path of a model."""
    if name == "tiny":
        where = directory / "tiny"
        where.mkdir(exist_ok=True)
        (where / "config.json").write_text(json.dumps(_TINY))
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
