"""The parts of a hybrid model's cache: the pages of full attention, and those of sliding windows.

SGLang composes its hybrid pool and its allocator of two ordinary ones each, side by side in one
scheduler. Each has a region, extents and a supply of its own.
"""

from __future__ import annotations

from typing import Any

#: What the parts are called.
NAMES = ("full attention", "sliding windows")
POOLS = ("full_kv_pool", "swa_kv_pool")
ALLOCATORS = ("full_attn_allocator", "swa_attn_allocator")


def parts_of(allocator: Any) -> list[Any]:
    """The allocators that an allocator is composed of; itself where it is of one piece."""
    if all(hasattr(allocator, name) for name in ALLOCATORS):
        return [getattr(allocator, name) for name in ALLOCATORS]
    return [allocator]


def pools_of(pool: Any) -> list[Any]:
    """The same for a KV pool."""
    if all(hasattr(pool, name) for name in POOLS):
        return [getattr(pool, name) for name in POOLS]
    return [pool]
