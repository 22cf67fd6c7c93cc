"""What we ask of the installed SGLang, seam by seam: whatever breaks one is told which."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sglang")

import kvcached_sglang

LAUNCHED = kvcached_sglang.needs_launcher(kvcached_sglang.installed_sglang() or "")
hooked = pytest.mark.skipif(LAUNCHED, reason="this SGLang has no plugins")
launched = pytest.mark.skipif(not LAUNCHED, reason="this SGLang has plugins")

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


def hooks() -> dict[str, tuple[str, Callable[..., Any]]]:
    from kvcached_sglang import attachment

    found = attachment._hooks()
    assert not isinstance(found, str), found
    return found


def names_of(kind: type) -> str:
    """The source of a class and of those it inherits from, as far as they are SGLang's."""
    return "".join(
        inspect.getsource(base) for base in kind.__mro__ if base.__module__.startswith("sglang")
    )


def assert_has(kind: type, attributes: tuple[str, ...]) -> None:
    source = names_of(kind)
    missing = [name for name in attributes if name not in source]
    assert not missing, f"{kind.__module__}.{kind.__name__} has no {', '.join(missing)}"


@hooked
def test_every_hook_has_its_place() -> None:
    assert len(hooks()) >= 15


@hooked
def test_every_hooked_method_takes_what_we_pass_on() -> None:
    from kvcached_sglang import attachment

    for target in hooks():
        name = target.rpartition(".")[2]
        method = inspect.unwrap(attachment._found(target))
        taken = tuple(inspect.signature(method).parameters)[1:]
        wanted = PARAMETERS.get(name, ())
        assert taken[: len(wanted)] == wanted, f"{target} takes {taken}"


@hooked
def test_the_registry_knows_our_kinds_of_hooks() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    assert {"AROUND", "BEFORE", "AFTER"} <= set(HookType.__members__)
    assert list(inspect.signature(HookRegistry.register).parameters)[:2] == ["target", "hook"]


def test_a_scheduler_has_what_the_keeper_reads() -> None:
    from sglang.srt.managers.scheduler import Scheduler

    assert_has(Scheduler, SCHEDULER)


@hooked
def test_the_maker_of_pools_has_what_we_read() -> None:
    builder = next(target for target in hooks() if target.endswith("._init_pools"))
    owner = pkgutil.resolve_name(builder.rpartition(".")[0])
    # Attributes of a mixin belong to the model runner.
    from sglang.srt.model_executor.model_runner import ModelRunner

    source = names_of(owner) + names_of(ModelRunner)
    missing = [name for name in BUILDER if name not in source]
    assert not missing, f"{owner.__module__}.{owner.__name__} has no {', '.join(missing)}"


def test_a_seed_that_sglang_draws_is_where_we_look_for_it() -> None:
    from sglang.srt.server_args import ServerArgs

    try:
        from sglang.srt.arg_groups.serving_hook import declare_resolution
    except ImportError:  # before 0.5.20: in the arguments themselves
        assert "self.random_seed = random" in names_of(ServerArgs)
        return
    from sglang.srt.runtime_context import get_device

    assert callable(declare_resolution)
    assert callable(get_device)


def test_a_batch_that_is_taken_for_full_says_so_where_we_change_it() -> None:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    assert ScheduleBatch.batch_is_full is False


def test_requests_and_prefix_caches_have_what_we_read() -> None:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache, EvictParams

    assert_has(Req, REQUEST)
    source = names_of(Req)
    assert "prefix_len" in source or "prefix_indices" in source
    assert callable(BasePrefixCache.evictable_size)
    assert callable(BasePrefixCache.evict)
    assert EvictParams(num_tokens=3).num_tokens == 3


def test_allocators_keep_their_free_pages_where_we_put_ours() -> None:
    from sglang.srt.mem_cache.allocator import (
        PagedTokenToKVPoolAllocator,
        TokenToKVPoolAllocator,
    )

    for kind in (TokenToKVPoolAllocator, PagedTokenToKVPoolAllocator):
        assert_has(kind, ("free_pages", "release_pages", "merge_and_sort_free", "get_kvcache"))


@hooked
def test_a_stage_passes_a_turns_requests_on_before_it_forms_its_batch() -> None:
    # A stage further down comes to the same turn without waiting for what this one does then.
    from sglang.srt.managers.scheduler import Scheduler

    loop = inspect.getsource(inspect.unwrap(Scheduler.event_loop_pp))
    assert loop.count("self.get_next_batch_to_run(") == 1
    sent = loop.index("self._pp_send_pyobj_to_next_stage(")
    assert sent < loop.index("self.get_next_batch_to_run(")


@hooked
def test_a_hybrid_pool_and_its_allocator_have_the_parts_that_we_serve() -> None:
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache, EvictParams
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    from kvcached_sglang import sub_pools

    try:
        from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
    except ImportError:  # before 0.5.14
        from sglang.srt.mem_cache.swa_memory_pool import SWATokenToKVPoolAllocator
    assert_has(SWATokenToKVPoolAllocator, (*sub_pools._ALLOCATORS, "full_to_swa_index_mapping"))
    assert_has(SWAKVPool, sub_pools._POOLS)
    assert callable(BasePrefixCache.full_evictable_size)
    assert callable(BasePrefixCache.swa_evictable_size)
    assert EvictParams(num_tokens=0, swa_num_tokens=3).swa_num_tokens == 3
    assert any(target.endswith("held_swa_tokens") for target in hooks())


@launched
def test_the_scheduler_process_is_an_official_parameter() -> None:
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.entrypoints.http_server import launch_server

    assert "run_scheduler_process_func" in inspect.signature(launch_server).parameters
    assert hasattr(Engine, "run_scheduler_process_func")


@launched
def test_the_process_makes_the_scheduler_by_its_name() -> None:
    from sglang.srt.managers import scheduler

    assert "Scheduler" in scheduler.run_scheduler_process.__code__.co_names
    assert scheduler.run_scheduler_process.__closure__ is None


@launched
def test_what_we_subclass_has_the_methods_that_we_override() -> None:
    made = importlib.import_module("kvcached_sglang.launched_scheduler")
    for kind in (made.ElasticScheduler, made.ElasticWorker, made.ElasticModelRunner):
        stock = kind.__mro__[1]
        ours = [name for name in vars(kind) if not name.startswith(("__", "_reason", "_exp"))]
        for name in set(ours) - {"_token_bytes", "_memory"}:
            assert hasattr(stock, name), f"{stock.__name__} has no {name}"


@launched
def test_workers_and_runners_are_made_as_sglang_makes_them() -> None:
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.tp_worker import TpModelWorker

    made = importlib.import_module("kvcached_sglang.launched_scheduler")
    more = ("mem_fraction_static", "moe_ep_size", "draft_model_idx")
    for names, method in (
        (made._WORKER, Scheduler.init_tp_model_worker),
        ((*made._RUNNER, *more), TpModelWorker._init_model_runner),
    ):
        source = inspect.getsource(method)
        passed = {line.split("=")[0].strip() for line in source.splitlines() if "=self." in line}
        assert passed, source
        unknown = passed - set(names) - {"worker_kwargs"}
        assert not unknown, f"{method.__qualname__} passes {unknown} as well"


def test_we_bring_no_platform_so_that_no_second_one_is_active() -> None:
    groups = ("sglang.srt.platforms", "sglang.srt.plugins")
    ours = [
        point
        for group in groups
        for point in entry_points(group=group)
        if point.value.startswith("kvcached_sglang")
    ]
    assert [(point.group, point.name) for point in ours] == [("sglang.srt.plugins", "kvcached")]


@hooked
def test_two_active_platforms_of_others_are_refused_by_sglang(tmp_path: Path) -> None:
    platforms = importlib.import_module("sglang.srt.platforms")
    group = json.dumps(importlib.import_module("sglang.srt.plugins").PLATFORM_PLUGINS_GROUP)
    assert platforms is not None
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text("def activate():\n    return 'no_such.Platform'\n")
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{json.loads(group)}]\n{name} = {name}:activate\n")
    code = "from sglang.srt.platforms import current_platform as p; p.device_name"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "SGLANG_PLATFORM" in done.stderr.splitlines()[-1]
