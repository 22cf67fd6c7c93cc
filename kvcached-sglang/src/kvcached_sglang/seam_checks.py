"""What is looked for in the loaded SGLang: each check says what is wrong, or None.

It may raise what Python raises where a name is not there. The seams that they serve are those of
:mod:`kvcached_sglang.contract`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

#: What our hooks pass on, by the method's name: the parameters behind self that must come first.
PARAMETERS = {
    "available_size": (),
    "alloc": ("need_size",),
    "alloc_extend": ("prefix_lens", "prefix_lens_cpu", "seq_lens", "seq_lens_cpu", "last_loc"),
    "alloc_decode": ("seq_lens", "seq_lens_cpu", "last_loc"),
    "clear": (),
    "get_all_free_pages": (),
    "_create_buffers": (),
    "session_held_tokens": (),
}
#: What the keeper and the fence read of a scheduler.
SCHEDULER = (
    "attn_tp_cpu_group",
    "chunked_prefill_size",
    "chunked_req",
    "enable_overlap",
    "forward_stream",
    "grammar_manager.grammar_queue",
    "is_mixed_chunk",
    "last_batch",
    "last_mbs",
    "max_prefill_tokens",
    "mbs",
    "pp_group",
    "running_batch",
    "running_mbs",
    "server_args",
    "sliding_window_size",
    "token_to_kv_pool_allocator",
    "tp_cpu_group",
    "tree_cache",
    "waiting_queue",
)
#: What is read of whoever makes the pools.
BUILDER = ("gpu_id", "is_draft_worker", "is_hybrid_swa", "mambaish_config", "model_config")
REQUEST = ("origin_input_ids", "output_ids")


def _source(kind: type) -> str:
    """The source of a class and of those it inherits from, as far as they are SGLang's."""
    return "".join(
        inspect.getsource(base) for base in kind.__mro__ if base.__module__.startswith("sglang")
    )


def _lacks(kind: type, names: tuple[str, ...], source: str | None = None) -> str | None:
    where = _source(kind) if source is None else source
    lost = [name for name in names if name not in where]
    return f"{kind.__module__}.{kind.__name__} has no {', '.join(lost)}" if lost else None


def hooks() -> str | None:
    """Every method that we hook is there, and takes what our hook passes on."""
    from kvcached_sglang import attachment

    found = attachment.hooks()
    if isinstance(found, str):
        return found
    for target in found:
        wanted = PARAMETERS.get(target.rpartition(".")[2], ())
        method = inspect.unwrap(attachment.found(target))
        taken = tuple(inspect.signature(method).parameters)[1:]
        if taken[: len(wanted)] != wanted:
            return f"{target}() takes {', '.join(taken)}"
    return None


def registry() -> str | None:
    """Hooks are registered by target and function, before, after and around a method."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if lost := {"AROUND", "BEFORE", "AFTER"} - set(HookType.__members__):
        return f"no hooks of kind {min(lost)}"
    taken = list(inspect.signature(HookRegistry.register).parameters)[:2]
    return None if taken == ["target", "hook"] else f"register() takes {', '.join(taken)}"


def scheduler() -> str | None:
    """A scheduler has what the keeper and the fence read of it."""
    from sglang.srt.managers.scheduler import Scheduler

    return _lacks(Scheduler, SCHEDULER)


def builder() -> str | None:
    """Whoever makes the pools has what is read of it."""
    # Attributes of a mixin belong to the model runner.
    from sglang.srt.model_executor.model_runner import ModelRunner

    from kvcached_sglang import attachment

    found = attachment.hooks()
    if isinstance(found, str):
        return found
    target = next(target for target in found if target.endswith("._init_pools"))
    owner = pkgutil.resolve_name(target.rpartition(".")[0])
    return _lacks(owner, BUILDER, _source(owner) + _source(ModelRunner))


def seed() -> str | None:
    """A random seed that SGLang draws is where we look for it."""
    from sglang.srt.server_args import ServerArgs

    try:
        from sglang.srt.arg_groups.serving_hook import declare_resolution
    except ImportError:  # before 0.5.20: in the arguments themselves
        drawn = "self.random_seed = random" in _source(ServerArgs)
        return None if drawn else "the arguments hold no seed that was drawn"
    from sglang.srt.runtime_context import get_device

    return None if callable(declare_resolution) and callable(get_device) else "kept elsewhere"


def full_batch() -> str | None:
    """A batch that takes nobody says so where we take it back."""
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    known = ScheduleBatch.batch_is_full is False
    return None if known else "a batch tells in another way that it takes nobody"


def requests_and_prefixes() -> str | None:
    """A request has its tokens and its prefix, and a prefix cache evicts by tokens."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache, EvictParams

    if (lost := _lacks(Req, REQUEST)) is not None:
        return lost
    source = _source(Req)
    if "prefix_len" not in source and "prefix_indices" not in source:
        return "a request does not know how much of it is a prefix"
    for name in ("evictable_size", "evict"):
        if not callable(getattr(BasePrefixCache, name, None)):
            return f"BasePrefixCache has no {name}()"
    return None if EvictParams(num_tokens=3).num_tokens == 3 else "evicts another way"


def free_pages() -> str | None:
    """Allocators keep lists of free pages, and know their cache."""
    from sglang.srt.mem_cache import allocator

    names = ("free_pages", "release_pages", "merge_and_sort_free", "get_kvcache")
    kinds = (allocator.TokenToKVPoolAllocator, allocator.PagedTokenToKVPoolAllocator)
    return next(filter(None, (_lacks(kind, names) for kind in kinds)), None)


def turns() -> str | None:
    """A stage passes a turn's requests on before it forms its batch: the next one comes to the same
    turn without waiting for what this one does then."""
    from sglang.srt.managers.scheduler import Scheduler

    loop = inspect.getsource(inspect.unwrap(Scheduler.event_loop_pp))
    forms = "self.get_next_batch_to_run("
    if loop.count(forms) != 1:
        return f"a turn forms {loop.count(forms)} batches"
    sent = loop.index("self._pp_send_pyobj_to_next_stage(")
    return None if sent < loop.index(forms) else "a stage passes requests on after its batch"


def hybrid_pools() -> str | None:
    """A hybrid pool has its two parts, and a prefix cache evicts windows by themselves."""
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache, EvictParams
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    from kvcached_sglang import sub_pools

    try:
        from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
    except ImportError:  # before 0.5.14
        from sglang.srt.mem_cache.swa_memory_pool import SWATokenToKVPoolAllocator
    for name in ("full_evictable_size", "swa_evictable_size"):
        if not callable(getattr(BasePrefixCache, name, None)):
            return f"BasePrefixCache has no {name}()"
    if EvictParams(num_tokens=0, swa_num_tokens=3).swa_num_tokens != 3:
        return "a prefix cache evicts windows another way"
    parts = (*sub_pools.ALLOCATORS, "full_to_swa_index_mapping")
    return _lacks(SWATokenToKVPoolAllocator, parts) or _lacks(SWAKVPool, sub_pools.POOLS)


def scheduler_process() -> str | None:
    """The scheduler's process is an official parameter, and makes the scheduler by its name."""
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.managers import scheduler

    if "run_scheduler_process_func" not in inspect.signature(launch_server).parameters:
        return "launch_server() takes no process"
    if not hasattr(Engine, "run_scheduler_process_func"):
        return "Engine takes no process"
    run: Any = scheduler.run_scheduler_process
    if "Scheduler" not in run.__code__.co_names or run.__closure__ is not None:
        return "run_scheduler_process() makes another scheduler"
    return None


def overrides() -> str | None:
    """What the launcher's classes override is SGLang's."""
    made = importlib.import_module("kvcached_sglang.launched_scheduler")
    for kind in (made.ElasticScheduler, made.ElasticWorker, made.ElasticModelRunner):
        stock = kind.__mro__[1]
        ours = {name for name in vars(kind) if not name.startswith(("__", "_reason", "_exp"))}
        if lost := [
            name for name in ours - {"_token_bytes", "_memory"} if not hasattr(stock, name)
        ]:
            return f"{stock.__name__} has no {min(lost)}"
    return None


def makers() -> str | None:
    """Workers and model runners are made of what we hand on."""
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.tp_worker import TpModelWorker

    made = importlib.import_module("kvcached_sglang.launched_scheduler")
    more = ("mem_fraction_static", "moe_ep_size", "draft_model_idx")
    for names, method in (
        (made.WORKER, Scheduler.init_tp_model_worker),
        ((*made.RUNNER, *more), TpModelWorker._init_model_runner),
    ):
        source = inspect.getsource(method)
        passed = {line.split("=")[0].strip() for line in source.splitlines() if "=self." in line}
        if not passed:
            return f"{method.__qualname__}() passes nothing of its own"
        if new := passed - set(names) - {"worker_kwargs"}:
            return f"{method.__qualname__}() passes {min(new)}, too"
    return None
