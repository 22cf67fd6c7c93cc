"""What every benchmark tells an SGLang engine, beside what it measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.gpu_memory import HAS_GPU

if TYPE_CHECKING:
    from benchmarks.models import Model

#: Kernels that need no compiler on the machine beside Triton's own.
_ON_A_GPU: dict[str, Any] = {"attention_backend": "triton"}
#: SGLang's own CPU build is not needed: PyTorch's attention serves.
_WITHOUT: dict[str, Any] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "disable_cuda_graph": True,
    "mem_fraction_static": 0.5,
    "max_total_tokens": 16384,
    "max_running_requests": 256,
}
#: Tokens of the context that no request may use.
_SPARE_TOKENS = 8


def of(model: Model, longest: int) -> dict[str, Any]:
    """Arguments of sglang.Engine for a model and requests of up to `longest` tokens."""
    return {
        "model_path": model.path,
        "load_format": model.load_format,
        "skip_tokenizer_init": True,
        # SGLang cuts answers that would come closer to its end.
        "context_length": longest + _SPARE_TOKENS,
        "random_seed": 0,
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "log_level": "warning",
        **(_ON_A_GPU if HAS_GPU else _WITHOUT),
    }
