"""What differs between the vLLM versions that are served: the one place that knows.

Nothing here compares version numbers. Each function looks for the thing itself, so that a version
that brings or drops it is met as it is; :mod:`kvcached_vllm.contract` says what all of them must
have. Imports nothing of vLLM until it is asked, because vLLM's platform plugin asks first.

Where a function names versions, they are those in whose sources the difference was found.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import torch
    from vllm.config import ParallelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.attention.backend import AttentionBackend
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

#: What vLLM's configuration names up to 0.10 where the user named nothing.
_NAMED_BY_VLLM = (
    "vllm.core.scheduler.Scheduler",
    "vllm.v1.core.sched.scheduler.Scheduler",
    "vllm.v1.core.sched.async_scheduler.AsyncScheduler",
)


# -- Configuration ----------------------------------------------------------------------------


def is_default_scheduler(name: Any) -> bool:
    """Whether vLLM's configuration names this scheduler of itself. It names none from 0.11 on."""
    from vllm.config import SchedulerConfig

    names_one = isinstance(getattr(SchedulerConfig, "scheduler_cls", None), str)
    return name is None or (names_one and name in _NAMED_BY_VLLM)


def schedules_asynchronously(config: SchedulerConfig) -> bool:
    """Whether vLLM would take its asynchronous scheduler, which 0.9 does not have."""
    return bool(getattr(config, "async_scheduling", False))


def data_parallel_index(parallel: ParallelConfig) -> int:
    """This engine's number among the engines of a data-parallel deployment. Up to 0.11 the rank
    is that, too."""
    return int(getattr(parallel, "data_parallel_index", parallel.data_parallel_rank))


def watermark(config: VllmConfig) -> float:
    """The share of the cache that admission leaves free, from 0.24 on; 0 before."""
    return float(getattr(config.scheduler_config, "watermark", 0.0))


def is_mixture_of_experts(config: VllmConfig) -> bool:
    """Whether the model has experts, by vLLM's own answer or, up to 0.13, by their number."""
    model = config.model_config
    known = getattr(model, "is_moe", None)
    if known is not None:
        return bool(known)
    text = model.hf_text_config
    return any(
        getattr(text, name, None)
        for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    )


# -- The KV cache's description ---------------------------------------------------------------


@functools.cache
def describes_one_buffer() -> bool:
    """Whether a tensor lists its layers with a stride between them: one backing allocation for
    all, from 0.29 on."""
    return "layers" in _tensor_fields()


@functools.cache
def packs_blocks() -> bool:
    """Whether a tensor may lie inside a block of all layers, from 0.24 on."""
    return "block_stride" in _tensor_fields()


def _tensor_fields() -> Mapping[str, Any]:
    from vllm.v1.kv_cache_interface import KVCacheTensor

    fields: Mapping[str, Any] = KVCacheTensor.__dataclass_fields__
    return fields


def parts_of(spec: KVCacheSpec) -> Mapping[str, KVCacheSpec] | None:
    """The specifications by layer of a group of several (UniformTypeKVCacheSpecs, from 0.11 on),
    or None where the group has one."""
    return getattr(spec, "kv_cache_specs", None)


def has_states(config: KVCacheConfig) -> bool:
    """Whether some layers keep a state (Mamba and its like) instead of keys and values."""
    from vllm.v1 import kv_cache_interface

    state = getattr(kv_cache_interface, "MambaSpec", ())
    return any(
        isinstance(part, state)
        for group in config.kv_cache_groups
        for part in (parts_of(group.kv_cache_spec) or {"": group.kv_cache_spec}).values()
    )


def attention_of(
    config: VllmConfig, specs: Mapping[str, KVCacheSpec]
) -> dict[str, type[AttentionBackend]]:
    """The attention of each of these layers, once the model is loaded."""
    from vllm.config import get_layers_from_vllm_config

    try:
        from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    except ImportError:
        return {name: _attention_for(config, spec) for name, spec in specs.items()}
    found = get_layers_from_vllm_config(config, AttentionLayerBase)
    return {name: found[name].get_attn_backend() for name in specs if name in found}


def _attention_for(config: VllmConfig, spec: KVCacheSpec) -> type[AttentionBackend]:
    """What 0.9 chooses for a layer, which does not say it (v1/worker/gpu_model_runner.py,
    initialize_attn_backend())."""
    from vllm.attention import get_attn_backend

    model = config.model_config
    chosen: type[AttentionBackend] = get_attn_backend(
        spec.head_size,
        model.dtype,
        spec.dtype,
        spec.block_size,
        model.is_attention_free,
        use_mla=spec.use_mla,
    )
    return chosen


#: The method by which attention makes its views of scales per token and head.
MAKES_SCALES = "_ensure_scale_caches"


def scales_each_head(spec: KVCacheSpec) -> bool:
    """Whether a cache has a scale for each token and head, which old versions do not have."""
    return bool(getattr(getattr(spec, "kv_quant_mode", None), "is_per_token_head", False))


def scaled_layers(config: VllmConfig) -> dict[str, Any]:
    """The layers whose attention can be asked to make its views of such scales, by name; those too
    that read another layer's cache."""
    layers: Mapping[str, Any] = getattr(config.compilation_config, "static_forward_context", {})
    return {
        name: layer
        for name, layer in layers.items()
        if hasattr(impl := getattr(layer, "impl", None), MAKES_SCALES)
        and getattr(impl, "_is_per_token_head_quant", False)
    }


def zeroes_blocks(config: KVCacheConfig) -> bool:
    """Whether vLLM zeroes blocks as it hands them out, which some models want from 0.17 on."""
    return bool(getattr(config, "needs_kv_cache_zeroing", False))


# -- The scheduler ----------------------------------------------------------------------------


def most_requests(scheduler: Any) -> int:
    """How many requests may be in a batch: from 0.31 on vLLM has a bound of its own for that."""
    most: int = getattr(scheduler, "max_num_active_reqs", scheduler.max_num_running_reqs)
    return most


def anybody_waits(scheduler: Any) -> bool:
    """Whether a request waits. 0.20 to 0.30 keep those that had to be passed over apart, and 0.32
    those that have blocks already, such as one whose prefix is being loaded."""
    apart = ("skipped_waiting", "kv_holding_waiting")
    return bool(scheduler.waiting) or any(getattr(scheduler, name, None) for name in apart)


def asynchronous_scheduler() -> type[Any]:
    """vLLM's asynchronous scheduler. 0.9 has none, and is given the other."""
    try:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    except ImportError:
        from vllm.v1.core.sched.scheduler import Scheduler

        return Scheduler  # type: ignore[no-any-return]
    return AsyncScheduler  # type: ignore[no-any-return]


@functools.cache
def sorts_freed_blocks() -> bool:
    """Whether vLLM puts blocks without a prefix ahead of the others when it frees them, from 0.24
    on. 0.23 does so where it is told to, and nobody could before."""
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue

    told = "prepend" in inspect.signature(BlockPool.free_blocks).parameters
    return hasattr(FreeKVCacheBlockQueue, "prepend_n") and not told


def may_forget_late(pool: BlockPool) -> bool:
    """Whether prefixes whose memory went may stay in vLLM's map of them: where the map is an object
    that can be asked in another way, from 0.11 on, and nobody is told of each prefix that goes."""
    from vllm.v1.core import block_pool

    return (
        hasattr(block_pool, "BlockHashToBlockMap")
        and not pool.enable_kv_cache_events
        and getattr(pool, "metrics_collector", None) is None
    )


def evict(pool: BlockPool, blocks: Collection[int]) -> None:
    """Makes vLLM forget the prefixes in these blocks, one by one up to 0.13."""
    if hasattr(pool, "evict_blocks"):
        pool.evict_blocks(set(blocks))
        return
    for block in blocks:
        pool._maybe_evict_cached_block(pool.blocks[block])


def preempted(plan: SchedulerOutput) -> Collection[str]:
    """The requests that a step's plan preempts, which it names from 0.14 on."""
    return getattr(plan, "preempted_req_ids", None) or ()


def resumed(cached: CachedRequestData) -> Collection[str]:
    """The requests that go on after a preemption. Up to 0.10 a plan has a flag for each."""
    if hasattr(cached, "resumed_req_ids"):
        return cached.resumed_req_ids  # type: ignore[no-any-return]
    flags = zip(cached.req_ids, cached.resumed_from_preemption, strict=True)
    return {name for name, flag in flags if flag}


# -- Workers ----------------------------------------------------------------------------------


def device_of(worker: Any) -> torch.device:
    """The device of a worker that has initialised it. Up to 0.22 a CPU worker's model runner alone
    knows."""
    device: torch.device | None = worker.device
    return worker.model_runner.device if device is None else device


def writes_beside_steps(config: VllmConfig) -> str | None:
    """What of this configuration writes to the cache on other streams than that of the model's
    steps, in words, or None."""
    if getattr(config, "kv_transfer_config", None) is not None:
        return "a KV connector, which loads on streams of its own"
    # Micro-batches have a stream each (0.26 v1/worker/gpu_ubatch_wrapper.py); older ones know DBO
    # alone.
    parallel = config.parallel_config
    if getattr(parallel, "use_ubatching", getattr(parallel, "enable_dbo", False)):
        return "micro-batches, which have a stream each"
    return None


def sleeping_bytes(tags: list[str] | None) -> int:
    """What a wake-up with these tags takes back of the device, in bytes: all that vLLM's allocator
    for sleep mode has let go, of these tags where there are any. 0 where nothing sleeps, or sleeps
    by another mechanism. An allocator that does not mark what sleeps, as in older versions,
    wakes all it has (0.26 device_allocator/cumem.py)."""
    from vllm.device_allocator.cumem import CuMemAllocator

    if (allocator := CuMemAllocator.instance) is None:
        return 0
    return sum(
        int(data.handle[1])
        for data in list(allocator.pointer_to_data.values())
        if getattr(data, "is_asleep", True) and (tags is None or data.tag in tags)
    )


def memory_of_cpu_node() -> Any | None:
    """The memory of the NUMA node that a CPU worker sizes its cache by (`total_memory` and
    `available_memory`, in bytes), or None where it looks at none, up to 0.19."""
    try:
        from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info
    except ImportError:
        return None
    return get_memory_node_info(get_allowed_cpu_list()[0].numa_node)
