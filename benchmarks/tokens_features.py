"""The ways of running vLLM that benchmarks.tokens compares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_EAGER: dict[str, Any] = {"enforce_eager": True}
#: Without torch.compile, which takes a minute an engine; CUDA graphs where every step decodes.
_GRAPHS: dict[str, Any] = {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}
_TRITON: dict[str, Any] = {**_GRAPHS, "attention_backend": "TRITON_ATTN"}
_FLASHINFER: dict[str, Any] = {**_GRAPHS, "attention_backend": "FLASHINFER"}
_ALONE = {"VLLM_BATCH_INVARIANT": "1"}
_AHEAD = {
    "KVCACHED_MIN_RESERVED_PAGES": "1000",
    "KVCACHED_MAX_RESERVED_PAGES": "1000",
    "KVCACHED_MAX_CACHED_TOKENS": "-1",
}
_V1 = {"VLLM_USE_V2_MODEL_RUNNER": "0"}


@dataclass(frozen=True)
class Feature:
    """One of them. `elastic` is set for the elastic engine alone."""

    engine: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    elastic: dict[str, str] = field(default_factory=dict)
    #: Vanilla gets a KV cache of as many blocks as elastic's limit allows.
    same_budget: bool = False
    #: Levels of sleep, each followed by a wake-up, between two halves of the requests.
    sleep: tuple[int, ...] = ()


FEATURES: dict[str, Feature] = {
    # What vLLM does on this machine by itself.
    "default": Feature(),
    "eager": Feature(_EAGER),
    "eager, small budget": Feature(
        _EAGER, elastic={**_AHEAD, "KVCACHED_LIMIT": "24MiB"}, same_budget=True
    ),
    "eager, memory ahead": Feature(_EAGER, elastic=_AHEAD),
    # On a GPU. Model runner V2 and asynchronous scheduling are vLLM's defaults.
    "graphs": Feature(_GRAPHS),
    # Memory for every request is there before the first of them.
    "graphs, memory ahead": Feature(_GRAPHS, elastic=_AHEAD),
    "fp8, memory ahead": Feature({**_GRAPHS, "kv_cache_dtype": "fp8"}, elastic=_AHEAD),
    "layers apart": Feature(_GRAPHS, elastic={"KVCACHED_LAYOUT": "layer"}),
    # Requests are preempted. All that the limit allows is there from the start, so that both
    # engines run out of blocks at the same moment.
    "small budget": Feature(
        _GRAPHS, elastic={**_AHEAD, "KVCACHED_LIMIT": "512MiB"}, same_budget=True
    ),
    # With kernels that are to answer the same in whatever batch.
    "graphs, batch invariant": Feature(_GRAPHS, _ALONE),
    "runner V1": Feature(_GRAPHS, _V1),
    "runner V1, layers apart": Feature(_GRAPHS, _V1, {"KVCACHED_LAYOUT": "layer"}),
    "synchronous": Feature({**_GRAPHS, "async_scheduling": False}),
    "compiled, piecewise graphs": Feature({"compilation_config": {"cudagraph_mode": "PIECEWISE"}}),
    "chunks of 256": Feature({**_GRAPHS, "max_num_batched_tokens": 256, "max_num_seqs": 64}),
    "Triton": Feature(_TRITON),
    "FlashInfer": Feature(_FLASHINFER),
    "ngram": Feature(
        {
            **_GRAPHS,
            "speculative_config": {
                "method": "ngram",
                "num_speculative_tokens": 3,
                "prompt_lookup_max": 3,
            },
        }
    ),
    "fp8": Feature({**_GRAPHS, "kv_cache_dtype": "fp8"}),
    # vLLM 0.26 quantises queries to e4m3 alone: Triton's attention and FlashInfer stop where the
    # cache is e5m2. For FlashInfer it can be told not to.
    "fp8 e5m2": Feature(
        {
            **_FLASHINFER,
            "kv_cache_dtype": "fp8_e5m2",
            "attention_config": {"disable_flashinfer_q_quantization": True},
        }
    ),
    # Which only Triton's attention reads.
    "fp8 per token and head": Feature({**_TRITON, "kv_cache_dtype": "fp8_per_token_head"}),
    "int8 per token and head": Feature({**_TRITON, "kv_cache_dtype": "int8_per_token_head"}),
    "int4 per token and head": Feature({**_TRITON, "kv_cache_dtype": "int4_per_token_head"}),
    "fp8, runner V1, sleep 1": Feature(
        {**_GRAPHS, "kv_cache_dtype": "fp8", "enable_sleep_mode": True}, _V1, sleep=(1,)
    ),
    "sleep 1 and 2": Feature({**_GRAPHS, "enable_sleep_mode": True}, sleep=(1, 2)),
    # Over two GPUs. Custom all-reduce and NCCL as vLLM chooses them.
    "two tensor-parallel ranks": Feature({**_GRAPHS, "tensor_parallel_size": 2}),
    "two tensor-parallel ranks, small budget": Feature(
        {**_GRAPHS, "tensor_parallel_size": 2},
        elastic={**_AHEAD, "KVCACHED_LIMIT": "256MiB"},
        same_budget=True,
    ),
    "two pipeline stages": Feature({**_GRAPHS, "pipeline_parallel_size": 2}),
}
