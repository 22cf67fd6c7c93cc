"""Converts a GGUF file to the safetensors folder that engines read.

    python -m demo.conversion MODEL.gguf FOLDER

Needs torch, transformers, accelerate and gguf. Weights are saved in bfloat16, as the original
model has them; whoever serves it chooses another type with --dtype.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Write weights, configuration, tokenizer and chat template of `gguf` into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    # Some releases leave it behind; a server would then look for quantized weights.
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a GGUF file to safetensors.")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    convert(options.gguf, options.folder)


if __name__ == "__main__":
    main()
