"""What vLLM must have for its cache to be elastic, checked in vLLM's sources without running them.

Each :class:`Seam` is one extension point, or one thing that vLLM promises nowhere and that is built
on all the same. The standard library alone.

A contract that holds says that the names are there, not that they mean what they meant: that is
what the versions in ``results/`` were run for.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcached_vllm.sources import name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvcached_vllm.sources import Sources

#: What an elastic free queue offers (kvcached._C.BlockQueue).
QUEUE_METHODS = frozenset(
    (
        *("popleft", "popleft_n", "remove", "append", "append_n", "prepend_n"),
        *("get_all_free_blocks", "iter_blocks_after"),
    )
)


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


# -- Checks -----------------------------------------------------------------------------------


def _has(
    path: str, name: str, *attributes: str, **methods: tuple[str, ...]
) -> Callable[[Sources], str | None]:
    """A class with these attributes, and these methods with at least these parameters."""

    def check(sources: Sources) -> str | None:
        found = sources.type(path, name)
        if found is None:
            return f"no class {name} in {path}"
        for attribute in attributes:
            if attribute not in found.attributes:
                return f"{name} has no {attribute} ({path})"
        for method, parameters in methods.items():
            if method not in found.methods:
                return f"{name} has no method {method}() ({path})"
            if lost := set(parameters) - _parameters(found.methods[method]):
                return f"{name}.{method}() has no parameter {min(lost)} ({path})"
        return None

    return check


def _configuration(name: str, *attributes: str) -> Callable[[Sources], str | None]:
    """A configuration class with these attributes: in a module of its own, which up to 0.10 some
    have not."""

    def check(sources: Sources) -> str | None:
        for path in (*sources.paths("config/*.py"), *sources.paths("config.py")):
            if sources.type(path, name) is not None:
                return _has(path, name, *attributes)(sources)
        return f"no class {name} in config"

    return check


def _either(*checks: Callable[[Sources], str | None]) -> Callable[[Sources], str | None]:
    """What one version has in one way and another in another (see kvcached_vllm.engine); said is
    what is wrong with the newest way, the first."""

    def check(sources: Sources) -> str | None:
        wrong = [each(sources) for each in checks]
        return None if None in wrong else wrong[0]

    return check


def _functions(path: str, *names: str) -> Callable[[Sources], str | None]:
    def check(sources: Sources) -> str | None:
        lost = [name for name in names if sources.function(path, name) is None]
        return f"no function {lost[0]}() in {path}" if lost else None

    return check


def _queue(sources: Sources) -> str | None:
    """vLLM's free queue has no method that an elastic one lacks."""
    path = "v1/core/kv_cache_utils.py"
    found = sources.type(path, "FreeKVCacheBlockQueue")
    if found is None:
        return f"no class FreeKVCacheBlockQueue in {path}"
    public = {name for name in found.methods if not name.startswith("_")}
    if new := public - QUEUE_METHODS:
        return f"FreeKVCacheBlockQueue has a new method {min(new)}() ({path})"
    return None if "num_free_blocks" in found.attributes else "the queue has no num_free_blocks"


def _asynchronous(sources: Sources) -> str | None:
    """Where the configuration asks for an asynchronous scheduler, there is one."""
    if _configuration("SchedulerConfig", "async_scheduling")(sources) is not None:
        return None
    return _has("v1/core/sched/async_scheduler.py", "AsyncScheduler")(sources)


def _prefixes(sources: Sources) -> str | None:
    """The map from hashes to blocks can be asked in another way, where it is an object."""
    path = "v1/core/block_pool.py"
    if sources.type(path, "BlockHashToBlockMap") is None:
        return None  # up to 0.10: there vLLM forgets a prefix when its memory goes
    return _has(path, "BlockHashToBlockMap", get_one_block=("key",))(sources) or _has(
        path, "BlockPool", "cached_block_hash_to_block", "enable_kv_cache_events"
    )(sources)


def _free_count(sources: Sources) -> str | None:
    """Whoever compares with the free count has asked the coordinator before, by the names that an
    elastic coordinator knows; and nobody beside the KV cache manager compares."""
    path = "v1/core/kv_cache_manager.py"
    manager = sources.type(path, "KVCacheManager")
    if manager is None:
        return f"no class KVCacheManager in {path}"
    for method in manager.methods.values():
        count = _calls(method, "get_num_free_blocks")
        asked = _calls(method, "get_num_blocks_to_allocate")
        if count and not asked:
            return f"KVCacheManager.{method.name}() looks at the free count by itself ({path})"
        for call in asked:
            names = {word.arg for word in call.keywords}
            if not {"request_id", "num_tokens", "new_computed_blocks"} <= names:
                return f"KVCacheManager.{method.name}() asks the coordinator another way ({path})"
    for other in sources.paths("v1/core/sched/*.py"):
        module = sources.module(other)
        if module is not None and _calls(module, "get_num_free_blocks"):
            return f"the scheduler looks at the free count by itself ({other})"
    return None


def _zeros(*patterns: str) -> Callable[[Sources], str | None]:
    """The cache is allocated by ``torch.zeros(size, dtype=torch.int8, device=...)``."""

    def check(sources: Sources) -> str | None:
        for path in (path for pattern in patterns for path in sources.paths(pattern)):
            module = sources.module(path)
            assert module is not None
            for call in _calls(module, "zeros"):
                words = {word.arg: word.value for word in call.keywords}
                kind = words.get("dtype")
                if len(call.args) == 1 and isinstance(kind, ast.Attribute) and kind.attr == "int8":
                    return None if "device" in words else f"allocated without a device ({path})"
        return f"no torch.zeros(size, dtype=torch.int8, device=...) in {', '.join(patterns)}"

    return check


def _layers_of_tensors(sources: Sources) -> str | None:
    path = "v1/kv_cache_interface.py"
    tensor = sources.type(path, "KVCacheTensor")
    if tensor is None:
        return f"no class KVCacheTensor in {path}"
    one_buffer = {"size", "layers", "layer_stride", "block_stride", "offset"}
    if one_buffer <= tensor.attributes or {"size", "shared_by"} <= tensor.attributes:
        return None
    return f"KVCacheTensor describes its layers in a new way ({path})"


def _outermost(*files: str) -> Callable[[Sources], str | None]:
    """The block is the outermost dimension of the cache's shape, or keys and values are and blocks
    come next, where attention still names a shape (up to 0.28; since 0.29 there are strides)."""

    def check(sources: Sources) -> str | None:
        for path in (f"v1/attention/backends/{file}.py" for file in files):
            module = sources.module(path)
            shapes = (
                node
                for node in ast.walk(module or ast.Module([], []))
                if isinstance(node, ast.FunctionDef) and node.name == "get_kv_cache_shape"
            )
            for node in (each for shape in shapes for each in ast.walk(shape)):
                if not isinstance(node, ast.Return) or not isinstance(node.value, ast.Tuple):
                    continue
                first, second = node.value.elts[:2]
                if isinstance(first, ast.Constant) and first.value == 2:
                    first = second
                if name_of(first) != "num_blocks":
                    return f"the outermost dimension is not the block ({path})"
        return None

    return check


def _platforms(sources: Sources) -> str | None:
    path = "platforms/__init__.py"
    module = sources.module(path)
    targets = (
        target
        for node in (module.body if module else ())
        if isinstance(node, ast.Assign)
        for target in node.targets
    )
    if any(name_of(target) == "builtin_platform_plugins" for target in targets):
        return None
    return f"no builtin_platform_plugins in {path}"


def _parameters(function: ast.FunctionDef) -> set[str]:
    given = function.args
    return {each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)}


def _calls(node: ast.AST, name: str) -> list[ast.Call]:
    """The calls of a function or method of that name below a node."""
    calls = (found for found in ast.walk(node) if isinstance(found, ast.Call))
    return [call for call in calls if name_of(call.func) == name]


_SCHEDULER = "v1/core/sched/scheduler.py"
_GPU_WORKER = "v1/worker/gpu_worker.py"
_PLAN = "v1/core/sched/output.py"
_CACHED = ("req_ids", "new_block_ids", "num_computed_tokens")

SEAMS = (
    Seam("the platforms that vLLM chooses from", _platforms),
    Seam(
        "the scheduler option",
        _configuration("SchedulerConfig", "scheduler_cls"),
    ),
    Seam(
        "the worker option",
        _configuration("ParallelConfig", "worker_cls", "data_parallel_rank"),
    ),
    Seam(
        "whether a model has experts",
        _either(
            _configuration("ModelConfig", "is_moe"),
            _configuration("ModelConfig", "hf_text_config"),
        ),
    ),
    Seam(
        "a request",
        _has(
            "v1/request.py",
            "Request",
            *("request_id", "status", "num_tokens", "num_computed_tokens"),
        ),
    ),
    Seam(
        "the hook after which a configuration is settled",
        _has("platforms/interface.py", "Platform", check_and_update_config=("vllm_config",)),
    ),
    Seam(
        "the scheduler's steps",
        _has(
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
        _has(
            _SCHEDULER,
            "Scheduler",
            finish_requests=("request_ids", "finished_status"),
            reset_prefix_cache=(),
        ),
    ),
    Seam(
        "the scheduler's state",
        _has(
            _SCHEDULER,
            "Scheduler",
            *("vllm_config", "kv_cache_config", "kv_cache_manager", "requests", "running"),
            *("waiting", "block_size", "max_model_len", "max_num_running_reqs"),
            "max_num_scheduled_tokens",
        ),
    ),
    Seam("the asynchronous scheduler", _asynchronous),
    Seam(
        "a step's plan",
        _has(
            _PLAN,
            "SchedulerOutput",
            *("scheduled_new_reqs", "scheduled_cached_reqs", "num_scheduled_tokens"),
            *("total_num_scheduled_tokens", "finished_req_ids"),
        ),
    ),
    Seam(
        "a plan's older requests",
        _either(
            _has(_PLAN, "CachedRequestData", *_CACHED, "resumed_req_ids"),
            _has(_PLAN, "CachedRequestData", *_CACHED, "resumed_from_preemption"),
        ),
    ),
    Seam(
        "the coordinator's question",
        _has(
            "v1/core/kv_cache_coordinator.py",
            "KVCacheCoordinator",
            "block_pool",
            get_num_blocks_to_allocate=("request_id", "num_tokens", "new_computed_blocks"),
        ),
    ),
    Seam("who looks at the free count", _free_count),
    Seam(
        "the KV cache manager",
        _has("v1/core/kv_cache_manager.py", "KVCacheManager", "coordinator", "block_pool"),
    ),
    Seam(
        "the block pool",
        _has(
            "v1/core/block_pool.py",
            "BlockPool",
            *("blocks", "free_block_queue", "num_gpu_blocks", "null_block"),
        ),
    ),
    Seam("the free queue", _queue),
    Seam(
        "eviction of prefixes",
        _either(
            _has("v1/core/block_pool.py", "BlockPool", evict_blocks=("block_ids",)),
            _has("v1/core/block_pool.py", "BlockPool", _maybe_evict_cached_block=("block",)),
        ),
    ),
    Seam("the map of prefixes", _prefixes),
    Seam(
        "a block",
        _has("v1/core/kv_cache_utils.py", "KVCacheBlock", "block_id", "ref_cnt", "is_null"),
    ),
    Seam("where layers lie", _layers_of_tensors),
    Seam(
        "the cache's configuration",
        _has(
            "v1/kv_cache_interface.py",
            "KVCacheConfig",
            *("num_blocks", "kv_cache_tensors", "kv_cache_groups"),
        ),
    ),
    Seam(
        "the kinds of cache",
        lambda sources: (
            _has("v1/kv_cache_interface.py", "KVCacheSpec", "page_size_bytes", "block_size")(
                sources
            )
            or _has("v1/kv_cache_interface.py", "FullAttentionSpec")(sources)
            or _has("v1/kv_cache_interface.py", "SlidingWindowSpec")(sources)
        ),
    ),
    Seam("a pipeline's stages", _functions("distributed/utils.py", "get_pp_indices")),
    Seam(
        "the CPU worker",
        _has("v1/worker/cpu_worker.py", "CPUWorker", determine_available_memory=(), init_device=()),
        "cpu",
    ),
    Seam(
        "how a CPU worker sizes its cache",
        _either(
            _functions(
                "utils/cpu_resource_utils.py", "get_memory_node_info", "get_allowed_cpu_list"
            ),
            _configuration("CacheConfig", "cpu_kvcache_space_bytes"),
        ),
        "cpu",
    ),
    Seam(
        "the worker's calls",
        _has(
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
        _zeros("v1/worker/utils.py", "v1/worker/gpu_model_runner.py"),
    ),
    Seam(
        "which attention a layer has",
        _either(
            _has(
                "model_executor/layers/attention_layer_base.py",
                "AttentionLayerBase",
                get_attn_backend=(),
            ),
            _has("v1/kv_cache_interface.py", "KVCacheTensor", "layer_stride"),
            _functions("attention/selector.py", "get_attn_backend"),
        ),
    ),
    Seam("where a block's keys and values lie on a CPU", _outermost("cpu_attn"), "cpu"),
    Seam(
        "where a block's keys and values lie on a GPU",
        _outermost("flash_attn", "triton_attn", "flashinfer"),
        "cuda",
    ),
    Seam(
        "the GPU worker's warm-up and sleep",
        _has(
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
            _has(_GPU_WORKER, "Worker", "init_snapshot", "requested_memory")(sources)
            or _configuration("CacheConfig", "kv_cache_memory_bytes")(sources)
        ),
        "cuda",
    ),
)
