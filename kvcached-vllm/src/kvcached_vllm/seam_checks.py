"""What can be looked for in vLLM's sources: each check says what is wrong, or None.

The seams that they serve are those of :mod:`kvcached_vllm.contract`. The standard library alone.
"""

from __future__ import annotations

import ast
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


def has(
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


def configuration(name: str, *attributes: str) -> Callable[[Sources], str | None]:
    """A configuration class with these attributes: in a module of its own, which up to 0.10 some
    have not."""

    def check(sources: Sources) -> str | None:
        for path in (*sources.paths("config/*.py"), *sources.paths("config.py")):
            if sources.type(path, name) is not None:
                return has(path, name, *attributes)(sources)
        return f"no class {name} in config"

    return check


def either(*checks: Callable[[Sources], str | None]) -> Callable[[Sources], str | None]:
    """What one version has in one way and another in another (see kvcached_vllm.engine); said is
    what is wrong with the newest way, the first."""

    def check(sources: Sources) -> str | None:
        wrong = [each(sources) for each in checks]
        return None if None in wrong else wrong[0]

    return check


def functions(path: str, *names: str) -> Callable[[Sources], str | None]:
    """Functions of a module."""

    def check(sources: Sources) -> str | None:
        lost = [name for name in names if sources.function(path, name) is None]
        return f"no function {lost[0]}() in {path}" if lost else None

    return check


def free_queue(sources: Sources) -> str | None:
    """vLLM's free queue has no method that an elastic one lacks."""
    path = "v1/core/kv_cache_utils.py"
    found = sources.type(path, "FreeKVCacheBlockQueue")
    if found is None:
        return f"no class FreeKVCacheBlockQueue in {path}"
    public = {name for name in found.methods if not name.startswith("_")}
    if new := public - QUEUE_METHODS:
        return f"FreeKVCacheBlockQueue has a new method {min(new)}() ({path})"
    return None if "num_free_blocks" in found.attributes else "the queue has no num_free_blocks"


def asynchronous_scheduler(sources: Sources) -> str | None:
    """Where the configuration asks for an asynchronous scheduler, there is one."""
    if configuration("SchedulerConfig", "async_scheduling")(sources) is not None:
        return None
    return has("v1/core/sched/async_scheduler.py", "AsyncScheduler")(sources)


def map_of_prefixes(sources: Sources) -> str | None:
    """The map from hashes to blocks can be asked in another way, where it is an object."""
    path = "v1/core/block_pool.py"
    if sources.type(path, "BlockHashToBlockMap") is None:
        return None  # up to 0.10: there vLLM forgets a prefix when its memory goes
    return has(path, "BlockHashToBlockMap", get_one_block=("key",))(sources) or has(
        path, "BlockPool", "cached_block_hash_to_block", "enable_kv_cache_events"
    )(sources)


def free_count(sources: Sources) -> str | None:
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


def allocated_by_zeros(*patterns: str) -> Callable[[Sources], str | None]:
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


def layers_of_tensors(sources: Sources) -> str | None:
    """A KV cache tensor names its layers in one of the two ways that are known."""
    path = "v1/kv_cache_interface.py"
    tensor = sources.type(path, "KVCacheTensor")
    if tensor is None:
        return f"no class KVCacheTensor in {path}"
    one_buffer = {"size", "layers", "layer_stride", "block_stride", "offset"}
    if one_buffer <= tensor.attributes or {"size", "shared_by"} <= tensor.attributes:
        return None
    return f"KVCacheTensor describes its layers in a new way ({path})"


def block_is_outermost(*files: str) -> Callable[[Sources], str | None]:
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


def platform_plugins(sources: Sources) -> str | None:
    """vLLM's own platforms are where an elastic one looks for the one that it extends."""
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
