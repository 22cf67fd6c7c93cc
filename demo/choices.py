"""Who can serve the demo's two models. Standard library only: it is asked before all else."""

from __future__ import annotations

VLLM, SGLANG = "vllm", "sglang"

CHOICES = {VLLM: (VLLM, VLLM), SGLANG: (SGLANG, SGLANG), "mixed": (VLLM, SGLANG)}
"""The engines of the first and the second model, by what `--engine` says."""
