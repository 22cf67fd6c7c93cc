"""Writes a small Whisper with random weights, for four seconds of sound."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import tiny_model
from tiny_model import SHARPNESS, VOCABULARY

SECONDS = 4
#: vLLM's dummy prompt begins with it.
START = "<|startoftranscript|>"


def write(into: Path) -> Path:
    """Write the model's directory below `into`, unless it is there, and return it."""
    target = into / "tiny-whisper"
    if target.exists():
        return target
    unfinished = into / f".tiny-whisper.{os.getpid()}"
    unfinished.mkdir(parents=True)
    tiny_model.write_tokenizer(unfinished, more=(START,))
    _write_model(unfinished)
    try:
        unfinished.rename(target)
    except OSError:
        shutil.rmtree(unfinished)
    return target


def _write_model(target: Path) -> None:
    import torch
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=VOCABULARY + 1,
        num_mel_bins=80,
        d_model=128,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        # Frames of 10 ms, of which the encoder makes one of two.
        max_source_positions=SECONDS * 50,
        max_target_positions=448,
        decoder_start_token_id=VOCABULARY,
        bos_token_id=tiny_model.END_OF_TEXT,
        eos_token_id=tiny_model.END_OF_TEXT,
        pad_token_id=tiny_model.END_OF_TEXT + 3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config).to(torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                sharp = name.endswith(("q_proj.weight", "k_proj.weight"))
                weight.normal_().mul_((SHARPNESS if sharp else 2.0) / weight.shape[1] ** 0.5)
            elif "embed_tokens" in name:
                weight.normal_().mul_(0.5)
    model.save_pretrained(target)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=SECONDS)
    extractor.save_pretrained(target)
    file = target / "preprocessor_config.json"
    described = json.loads(file.read_text()) if file.exists() else extractor.to_dict()
    file.write_text(json.dumps({**described, "processor_class": "WhisperProcessor"}))
