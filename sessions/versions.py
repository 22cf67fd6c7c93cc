"""Which versions of the engines the sessions run with."""

from __future__ import annotations

# Every version of an engine that the matrix runs.
VLLM_VERSIONS = (
    *("0.33", "0.32", "0.31", "0.30", "0.29", "0.28", "0.27", "0.26", "0.25", "0.24", "0.23"),
    *("0.22", "0.20", "0.17", "0.14", "0.11", "0.10", "0.9"),
)
# Of these the Python alone: 0.33 has no CPU build, and those of the others want a newer C++ library
# than Debian 12 has (tools/vllm_environment.py).
VLLM_WITHOUT_ENGINE = ("0.33", "0.11", "0.10", "0.9")
OLDEST_VLLM_ON_CPU = "0.14"
# Refused: only its sources are fetched, and say why.
REFUSED_VLLM_VERSIONS = ("0.8",)
SGLANG_VERSIONS = ("0.5.23", "0.5.14")
OTHER_SGLANG_VERSIONS = ("0.5.20", "0.5.17", "0.5.12.post1", "0.5.11", "0.5.10.post1", "0.5.9")
