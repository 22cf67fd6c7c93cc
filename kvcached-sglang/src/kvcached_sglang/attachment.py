"""Registers our hooks with SGLang's HookRegistry, and tells whether SGLang has applied them."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pkgutil
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_MC = "sglang.srt.mem_cache"
_MGR = "sglang.srt.managers"
_TOKEN = f"{_MC}.allocator.TokenToKVPoolAllocator"
_PAGED = f"{_MC}.allocator.PagedTokenToKVPoolAllocator"

#: Where pools are made: from 0.5.17 on, and before.
_BUILDERS = (
    f"{_MC}.kv_cache_configurator.KVCacheConfigurator",
    "sglang.srt.model_executor.model_runner_kv_cache_mixin.ModelRunnerKVCacheMixin",
)

#: What SGLang's leak check counts as held by sessions: from 0.5.14 on, and before.
_HELD = (
    f"{_MGR}.scheduler_components.pool_stats_observer.SchedulerPoolStatsObserver"
    ".session_held_tokens",
    f"{_MGR}.scheduler_runtime_checker_mixin.SchedulerRuntimeCheckerMixin._session_held_tokens",
)

#: How long the end of a launcher may wait for its killed schedulers to be gone, in seconds.
_PATIENCE = 1.0

_registered: dict[str, Callable[..., Any]] = {}


def attach() -> str | None:
    """Registers the hooks; returns why this SGLang has no place for them, or None."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    wanted = hooks()
    if isinstance(wanted, str):
        return wanted
    kinds = {"around": HookType.AROUND, "before": HookType.BEFORE, "after": HookType.AFTER}
    for target, (kind, hook) in wanted.items():
        HookRegistry.register(target, hook, kinds[kind])
        _registered[target] = found(target)
    if multiprocessing.parent_process() is None:
        # A launcher: its schedulers end with it, by a signal at times.
        atexit.register(clean_up)
    return None


def hooks() -> dict[str, tuple[str, Callable[..., Any]]] | str:
    """Our hooks by their targets, each with its kind; or why this SGLang has no place for them."""
    from kvcached_sglang import allocators, pools, scheduling

    builder = next((name for name in _BUILDERS if _has(f"{name}._init_pools")), None)
    if builder is None:
        return "this SGLang makes its KV pools elsewhere"
    # From 0.5.17 on all that a paged allocator frees passes here.
    paged_free = "_release_page_ids" if _has(f"{_PAGED}._release_page_ids") else "free"
    held = next(filter(_has, _HELD), _HELD[0])
    made: dict[str, tuple[str, Callable[..., Any]]] = {
        f"{builder}._init_pools": ("around", pools.init_pools),
        f"{builder}._profile_available_bytes": ("around", pools.profile_available_bytes),
        f"{_MC}.memory_pool.MHATokenToKVPool._create_buffers": ("around", pools.create_buffers),
        f"{_MC}.memory_pool.MLATokenToKVPool._create_buffers": ("around", pools.create_buffers),
        f"{_TOKEN}.free": ("around", allocators.free),
        f"{_PAGED}.{paged_free}": ("around", allocators.free),
        f"{_PAGED}.alloc_extend": ("around", allocators.alloc_extend),
        f"{_PAGED}.alloc_decode": ("around", allocators.alloc_decode),
        f"{_MGR}.scheduler.Scheduler.get_next_batch_to_run": ("before", scheduling.before_batch),
        f"{_MGR}.scheduler.Scheduler.run_batch": ("around", scheduling.run_batch),
        held: ("after", scheduling.session_held_tokens),
        held.replace("held_tokens", "held_swa_tokens"): (
            "after",
            scheduling.session_held_swa_tokens,
        ),
    }
    of_full = held.replace("held_tokens", "held_full_tokens")
    if _has(of_full):  # until 0.5.20; what later versions sum up for full attention has no own name
        made[of_full] = ("after", scheduling.session_held_tokens)
    for allocator in (_TOKEN, _PAGED):
        made[f"{allocator}.available_size"] = ("around", allocators.available_size)
        made[f"{allocator}.alloc"] = ("around", allocators.alloc)
        made[f"{allocator}.clear"] = ("around", allocators.clear)
        if _has(f"{allocator}.get_all_free_pages"):  # 0.5.20 and later
            made[f"{allocator}.get_all_free_pages"] = ("around", allocators.get_all_free_pages)
    missing = [target for target in made if not _has(target)]
    return f"this SGLang has no {missing[0]}" if missing else made


def found(target: str) -> Any:
    """What stands at a hook's target. Raises ImportError or AttributeError where nothing does."""
    owner, _, name = target.rpartition(".")
    return getattr(pkgutil.resolve_name(owner), name)


def _has(target: str) -> bool:
    try:
        found(target)
    except (ImportError, AttributeError):
        return False
    return True


def missing_hook() -> str | None:
    """Which of our hooks SGLang has not applied, as a reason, or None. SGLang only logs it."""
    for target, before in _registered.items():
        if found(target) is before:
            return f"SGLang did not apply the hook on {target}; its log says why"
    return None if _registered else "the hooks were not registered"


def rank_of(builder: Any) -> tuple[int, int]:
    """(rank, its replica's first device) of the process whose pools `builder` makes; the ranks of
    a pipeline's first stage come first. Replicas of one engine (``--dp-size``) differ in the latter
    alone."""
    from torch import distributed

    from kvcached_sglang import NotElastic

    arguments = builder.server_args
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    if distributed.is_initialized() and distributed.get_world_size() != ranks_of(arguments):
        raise NotElastic("kvcached: SGLang's ranks are not those of one engine")
    step = getattr(arguments, "gpu_id_step", 1) or 1
    # As SGLang counts: the devices of a stage behind those of the one before.
    stage, in_stage = divmod(rank, arguments.tp_size)
    return rank, builder.gpu_id - stage * arguments.tp_size - in_stage * step


def ranks_of(server_args: Any) -> int:
    """Processes of one engine, or of one replica of it, that hold a part of its cache."""
    return int(server_args.tp_size * getattr(server_args, "pp_size", 1))


def clean_up() -> None:
    """Removes the rows of this launcher's killed schedulers, and the lease they held."""
    from kvcached import _C, settings, shm
    from kvcached_sglang import identity

    try:
        directory = identity.directory(settings.load())
    except (shm.SharedMemoryError, settings.SettingsError):
        return
    deadline = time.monotonic() + _PATIENCE
    while True:
        _C.remove_dead_rows(str(directory))
        if time.monotonic() >= deadline or not any(
            directory.glob(identity.children_of(os.getpid()))
        ):
            _C.remove_dead_ledgers(str(directory))
            return
        time.sleep(0.02)
