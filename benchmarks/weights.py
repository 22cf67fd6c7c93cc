"""Random weights in files, for what loads a model twice: an engine that wakes from level 2 of sleep
reads its weights again, and vLLM cannot make up the same ones a second time."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def write(folder: Path) -> None:
    """Adds weights to a folder with a config.json, as the model's own code initialises them. The
    same ones every time."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, safe_serialization=True)
