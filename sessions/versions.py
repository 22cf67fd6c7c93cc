"""Which versions of the engines the sessions run with."""

from __future__ import annotations

# Every version of an engine that the matrix runs. 0.33 has no CPU build: its Python alone.
VLLM_VERSIONS = (
    *("0.33", "0.32", "0.31", "0.30", "0.29", "0.28", "0.27", "0.26", "0.25", "0.24", "0.23"),
    *("0.22", "0.20", "0.17", "0.14", "0.11", "0.10", "0.9"),
)
OLDEST_VLLM_ON_CPU = "0.17"
# Refused: only its sources are fetched, and say why.
REFUSED_VLLM_VERSIONS = ("0.8",)
SGLANG_VERSIONS = ("0.5.23", "0.5.14")
OTHER_SGLANG_VERSIONS = ("0.5.20", "0.5.17", "0.5.12.post1", "0.5.11", "0.5.10.post1", "0.5.9")
