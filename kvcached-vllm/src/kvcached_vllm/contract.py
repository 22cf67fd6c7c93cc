"""What vLLM must have for its cache to be elastic, checked in vLLM's sources without running them.

Each :class:`Seam` is one extension point, or one thing that vLLM promises nowhere and that is built
on all the same; how it is looked for is in :mod:`kvcached_vllm.seam_checks`. The standard library
alone.

A contract that holds says that the names are there, not that they mean what they meant: that is
what the versions in ``results/`` were run for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcached_vllm.seam_checks import (
    allocated_by_zeros,
    asynchronous_scheduler,
    block_is_outermost,
    configuration,
    either,
    free_count,
    free_queue,
    functions,
    has,
    layers_of_tensors,
    map_of_prefixes,
    platform_plugins,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvcached_vllm.sources import Sources


@dataclass(frozen=True)
class Seam:
    """One thing of vLLM's that an elastic cache is built on."""

    name: str
    check: Callable[[Sources], str | None]
    """What is wrong, or None."""
    device: str | None = None
    """The kind of device that it matters on, or None for all."""


def broken(sources: Sources, device: str | None = None) -> list[str]:
    """What is wrong with each seam that does not hold, in one line each: those that matter on every
    device, or on `device`."""
    lines = ((seam, seam.check(sources)) for seam in SEAMS if seam.device == device)
    return [f"{seam.name}: {wrong}" for seam, wrong in lines if wrong is not None]


_SCHEDULER = "v1/core/sched/scheduler.py"
_GPU_WORKER = "v1/worker/gpu_worker.py"
_PLAN = "v1/core/sched/output.py"
_CACHED = ("req_ids", "new_block_ids", "num_computed_tokens")

SEAMS = (
    Seam("the platforms that vLLM chooses from", platform_plugins),
    Seam(
        "the scheduler option",
        configuration("SchedulerConfig", "scheduler_cls"),
    ),
    Seam(
        "the worker option",
        configuration("ParallelConfig", "worker_cls", "data_parallel_rank"),
    ),
    Seam(
        "whether a model has experts",
        either(
            configuration("ModelConfig", "is_moe"),
            configuration("ModelConfig", "hf_text_config"),
        ),
    ),
    Seam(
        "a request",
        has(
            "v1/request.py",
            "Request",
            *("request_id", "status", "num_tokens", "num_computed_tokens"),
        ),
    ),
    Seam(
        "the hook after which a configuration is settled",
        has("platforms/interface.py", "Platform", check_and_update_config=("vllm_config",)),
    ),
    Seam(
        "the scheduler's steps",
        has(
            _SCHEDULER,
            "Scheduler",
            schedule=(),
            update_from_output=("scheduler_output", "model_runner_output"),
            make_stats=(),
            shutdown=(),
        ),
    ),
    Seam(
        "how requests and prefixes leave",
        has(
            _SCHEDULER,
            "Scheduler",
            finish_requests=("request_ids", "finished_status"),
            reset_prefix_cache=(),
        ),
    ),
    Seam(
        "the scheduler's state",
        has(
            _SCHEDULER,
            "Scheduler",
            *("vllm_config", "kv_cache_config", "kv_cache_manager", "requests", "running"),
            *("waiting", "block_size", "max_model_len", "max_num_running_reqs"),
            "max_num_scheduled_tokens",
        ),
    ),
    Seam("the asynchronous scheduler", asynchronous_scheduler),
    Seam(
        "a step's plan",
        has(
            _PLAN,
            "SchedulerOutput",
            *("scheduled_new_reqs", "scheduled_cached_reqs", "num_scheduled_tokens"),
            *("total_num_scheduled_tokens", "finished_req_ids"),
        ),
    ),
    Seam(
        "a plan's older requests",
        either(
            has(_PLAN, "CachedRequestData", *_CACHED, "resumed_req_ids"),
            has(_PLAN, "CachedRequestData", *_CACHED, "resumed_from_preemption"),
        ),
    ),
    Seam(
        "the coordinator's question",
        has(
            "v1/core/kv_cache_coordinator.py",
            "KVCacheCoordinator",
            "block_pool",
            get_num_blocks_to_allocate=("request_id", "num_tokens", "new_computed_blocks"),
        ),
    ),
    Seam("who looks at the free count", free_count),
    Seam(
        "the KV cache manager",
        has("v1/core/kv_cache_manager.py", "KVCacheManager", "coordinator", "block_pool"),
    ),
    Seam(
        "the block pool",
        has(
            "v1/core/block_pool.py",
            "BlockPool",
            *("blocks", "free_block_queue", "num_gpu_blocks", "null_block"),
        ),
    ),
    Seam("the free queue", free_queue),
    Seam(
        "eviction of prefixes",
        either(
            has("v1/core/block_pool.py", "BlockPool", evict_blocks=("block_ids",)),
            has("v1/core/block_pool.py", "BlockPool", _maybe_evict_cached_block=("block",)),
        ),
    ),
    Seam("the map of prefixes", map_of_prefixes),
    Seam(
        "a block",
        has("v1/core/kv_cache_utils.py", "KVCacheBlock", "block_id", "ref_cnt", "is_null"),
    ),
    Seam("where layers lie", layers_of_tensors),
    Seam(
        "the cache's configuration",
        has(
            "v1/kv_cache_interface.py",
            "KVCacheConfig",
            *("num_blocks", "kv_cache_tensors", "kv_cache_groups"),
        ),
    ),
    Seam(
        "the kinds of cache",
        lambda sources: (
            has("v1/kv_cache_interface.py", "KVCacheSpec", "page_size_bytes", "block_size")(sources)
            or has("v1/kv_cache_interface.py", "FullAttentionSpec")(sources)
            or has("v1/kv_cache_interface.py", "SlidingWindowSpec")(sources)
        ),
    ),
    Seam("a pipeline's stages", functions("distributed/utils.py", "get_pp_indices")),
    Seam(
        "the CPU worker",
        has("v1/worker/cpu_worker.py", "CPUWorker", determine_available_memory=(), init_device=()),
        "cpu",
    ),
    Seam(
        "how a CPU worker sizes its cache",
        either(
            functions(
                "utils/cpu_resource_utils.py", "get_memory_node_info", "get_allowed_cpu_list"
            ),
            configuration("CacheConfig", "cpu_kvcache_space_bytes"),
        ),
        "cpu",
    ),
    Seam(
        "the worker's calls",
        has(
            _GPU_WORKER,
            "Worker",
            init_device=(),
            determine_available_memory=(),
            initialize_from_config=("kv_cache_config",),
            execute_model=("scheduler_output",),
        ),
    ),
    Seam(
        "the allocation of the cache",
        allocated_by_zeros("v1/worker/utils.py", "v1/worker/gpu_model_runner.py"),
    ),
    Seam(
        "which attention a layer has",
        either(
            has(
                "model_executor/layers/attention_layer_base.py",
                "AttentionLayerBase",
                get_attn_backend=(),
            ),
            has("v1/kv_cache_interface.py", "KVCacheTensor", "layer_stride"),
            functions("attention/selector.py", "get_attn_backend"),
        ),
    ),
    Seam("where a block's keys and values lie on a CPU", block_is_outermost("cpu_attn"), "cpu"),
    Seam(
        "where a block's keys and values lie on a GPU",
        block_is_outermost("flash_attn", "triton_attn", "flashinfer"),
        "cuda",
    ),
    Seam(
        "the GPU worker's warm-up and sleep",
        has(
            _GPU_WORKER,
            "Worker",
            compile_or_warm_up_model=(),
            sleep=("level",),
            wake_up=("tags",),
        ),
        "cuda",
    ),
    Seam(
        "how the GPU worker sizes its cache",
        lambda sources: (
            has(_GPU_WORKER, "Worker", "init_snapshot", "requested_memory")(sources)
            or configuration("CacheConfig", "kv_cache_memory_bytes")(sources)
        ),
        "cuda",
    ),
)
