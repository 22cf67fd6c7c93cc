"""Whether an engine's configuration can be served elastically."""

from __future__ import annotations

import os
from typing import Any

from kvcached import settings as kvcached_settings
from kvcached import shm
from kvcached_sglang import identity
from kvcached_sglang.sub_pools import parts_of

_POOLS = ("MHATokenToKVPool", "MLATokenToKVPool")
_ALLOCATORS = (
    "TokenToKVPoolAllocator",
    "PagedTokenToKVPoolAllocator",
    "SWATokenToKVPoolAllocator",
    "ElasticTokenAllocator",
    "ElasticPagedAllocator",
)

#: Options that are not covered where they are set, and what they are.
_UNCOVERED = {
    "enable_memory_saver": "the memory saver (--enable-memory-saver)",
    "enable_hierarchical_cache": "HiCache (--enable-hierarchical-cache)",
    "enable_lmcache": "LMCache (--enable-lmcache)",
    "enable_hisparse": "HiSparse",
    "enable_pdmux": "PD multiplexing",
    "enable_unified_memory": "the unified memory pool (--enable-unified-memory)",
    "enable_page_major_kv_layout": "the page-major KV layout",
    "enable_kv_cache_sharding": "KV cache sharding",
    "prefill_only_disable_kv_cache": "--prefill-only-disable-kv-cache",
    "enable_elastic_expert_backup": "elastic expert parallelism",
}
#: Environment variables of SGLang's that change the cache's layout or owner.
_UNCOVERED_ENVIRONMENT = {
    "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING": "SGLang's own sizing after graph capture",
    "SGLANG_USE_HND_KVCACHE": "the HND layout",
}


def configuration_reason(server_args: Any) -> str | None:
    """Why these arguments are not covered, or None."""
    for option, what in _UNCOVERED.items():
        if getattr(server_args, option, False):
            return f"{what} is not covered"
    if getattr(server_args, "disaggregation_mode", "null") not in (None, "null"):
        return f"PD disaggregation ({server_args.disaggregation_mode}) is not covered"
    if getattr(server_args, "speculative_algorithm", None) is not None:
        return f"speculative decoding ({server_args.speculative_algorithm}) is not covered"
    if getattr(server_args, "enable_dp_attention", False) and server_args.pp_size > 1:
        return "data-parallel attention over several stages is not covered"
    # It lets other prompts in beside one that is half in, which needs_of() does not foresee (0.5.23
    # managers/schedule_policy.py, shortest_prefill_chunk_limit()).
    if getattr(server_args, "schedule_policy", "") == "shortest-prefill-first":
        return "the policy shortest-prefill-first is not covered"
    if getattr(server_args, "nnodes", 1) > 1:
        return "an engine over several nodes is not covered"
    if getattr(server_args, "attn_cp_size", 1) > 1 or getattr(server_args, "dcp_size", 1) > 1:
        return "context parallelism is not covered"
    for variable, what in _UNCOVERED_ENVIRONMENT.items():
        if os.environ.get(variable, "").strip().lower() in {"1", "true", "yes", "y", "t", "on"}:
            return f"{what} ({variable}) is not covered"
    return None


def model_reason(builder: Any) -> str | None:
    """Why the pools that `builder` is about to make are not covered, or None. `builder` is
    SGLang's object whose ``_init_pools()`` runs."""
    if builder.is_hybrid_swa and getattr(builder.server_args, "pp_size", 1) > 1:
        return "sliding windows in a hybrid pool are not covered over several stages"
    if "DeepseekV4" in _architecture(builder):
        return "the KV pools of DeepSeek V4 are not covered"
    if builder.mambaish_config is not None:
        return "models with a Mamba or linear-attention state are not covered"
    if getattr(builder, "post_capture_kv_active", False):
        return "SGLang's own sizing after graph capture is not covered"
    return None


def _architecture(builder: Any) -> str:
    config = getattr(builder.model_config, "hf_config", None)
    return str((getattr(config, "architectures", None) or [""])[0])


def pool_reason(pool: Any) -> str | None:
    """Why a KV pool that has not made its tensors yet is not covered, or None."""
    # Exactly these: a subclass may reach its memory in its own way.
    if type(pool).__name__ not in _POOLS:
        return f"KV pools of kind {type(pool).__name__} are not covered"
    if getattr(pool, "use_dsa", False):
        return "DSA index caches are not covered"
    if getattr(pool, "kv_cache_layout", "nhd") != "nhd" or getattr(pool, "use_hnd", False):
        return f"the KV layout {getattr(pool, 'kv_cache_layout', 'hnd')} is not covered"
    if getattr(pool, "is_quantized_kv_cache", False):
        return "KV caches with scales of their own are not covered"
    if getattr(pool, "enable_custom_mem_pool", False) or getattr(pool, "custom_mem_pool", None):
        return "a custom memory pool is not covered"
    if getattr(pool, "layer_num", 1) == 0:
        return "a hybrid pool of one kind of layers alone is not covered"
    if pool.size % pool.page_size != 0:
        return f"a cache of {pool.size} tokens in pages of {pool.page_size} is not covered"
    return None


def allocator_reason(allocator: Any) -> str | None:
    """Why an allocator is not covered, or None."""
    for part in (allocator, *parts_of(allocator)):
        if type(part).__name__ not in _ALLOCATORS:
            return f"allocators of kind {type(part).__name__} are not covered"
    if getattr(allocator, "_swa_req_ring", False):
        return "sliding windows in rings by request are not covered"
    return None


def shared_memory_reason(wanted: kvcached_settings.Settings) -> str | None:
    """Why there can be no page table, or None."""
    try:
        shm.check_room(identity.directory(wanted))
    except shm.SharedMemoryError as error:
        return str(error).removeprefix("kvcached: ")
    return None
