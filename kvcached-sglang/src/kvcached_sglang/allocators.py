"""Hooks on SGLang's allocators: their lists of free pages stay empty, and the supply answers.

The stock methods run unmodified: what they are about to take is put into their list before, and
what they have put there is taken out after. Allocators without a supply are left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvcached_sglang.sub_pools import parts_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from kvcached_sglang.page_supply import PageSupply

_ATTRIBUTE = "kvcached_supply"


def supply_of(allocator: Any) -> PageSupply | None:
    """The supply behind an allocator, or None where it is vanilla."""
    return getattr(allocator, _ATTRIBUTE, None)


def supplies_of(allocator: Any) -> list[PageSupply]:
    """The supplies behind all parts of an allocator; none where it is vanilla."""
    found = map(supply_of, parts_of(allocator))
    return [supply for supply in found if supply is not None]


def put_under(allocator: Any, supply: PageSupply) -> None:
    """Lets a supply answer for an allocator from which nothing has been taken."""
    _empty(allocator, supply)
    setattr(allocator, _ATTRIBUTE, supply)


def _empty(allocator: Any, supply: PageSupply) -> None:
    # Stock methods make new lists of these and never write to them.
    allocator.free_pages = supply.nothing
    if getattr(allocator, "release_pages", None) is not None:
        allocator.release_pages = supply.nothing


def _sweep(allocator: Any, supply: PageSupply) -> None:
    """Takes out what a stock method has put into the allocator's lists."""
    allocator.merge_and_sort_free()
    if allocator.free_pages.numel():
        supply.give(allocator.free_pages)
        _empty(allocator, supply)


def available_size(original: Callable[..., Any], self: Any) -> Any:
    """AROUND ``available_size()``."""
    supply = supply_of(self)
    return original(self) if supply is None else supply.available_tokens


def alloc(original: Callable[..., Any], self: Any, need_size: int) -> Any:
    """AROUND ``alloc()``."""
    supply = supply_of(self)
    if supply is None:
        return original(self, need_size)
    return _served(original, self, supply, need_size // self.page_size, (need_size,), {})


def alloc_extend(
    original: Callable[..., Any],
    self: Any,
    prefix_lens: Any,
    prefix_lens_cpu: Any,
    seq_lens: Any,
    seq_lens_cpu: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """AROUND a paged allocator's ``alloc_extend()``."""
    given = (prefix_lens, prefix_lens_cpu, seq_lens, seq_lens_cpu, *args)
    supply = supply_of(self)
    if supply is None:
        return original(self, *given, **kwargs)
    pages = int((_pages(seq_lens_cpu, self) - _pages(prefix_lens_cpu, self)).sum())
    return _served(original, self, supply, pages, given, kwargs)


def alloc_decode(
    original: Callable[..., Any], self: Any, seq_lens: Any, seq_lens_cpu: Any, *args: Any
) -> Any:
    """AROUND a paged allocator's ``alloc_decode()``."""
    given = (seq_lens, seq_lens_cpu, *args)
    supply = supply_of(self)
    if supply is None:
        return original(self, *given)
    # One token each; whoever begins a page needs one.
    pages = int(((seq_lens_cpu - 1) % self.page_size == 0).sum())
    return _served(original, self, supply, pages, given, {})


def _pages(lengths: torch.Tensor, allocator: Any) -> torch.Tensor:
    return (lengths + allocator.page_size - 1) // allocator.page_size


def _served(
    original: Callable[..., Any],
    allocator: Any,
    supply: PageSupply,
    pages: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    ids = supply.take(pages)
    if ids is None:
        return None
    allocator.free_pages = ids
    try:
        return original(allocator, *args, **kwargs)
    finally:
        _sweep(allocator, supply)


def free(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND what puts pages into the allocator's lists: ``free()`` or ``_release_page_ids()``."""
    result = original(self, *args, **kwargs)
    supply = supply_of(self)
    if supply is not None:
        _sweep(self, supply)
    return result


def clear(original: Callable[..., Any], self: Any) -> Any:
    """AROUND ``clear()``."""
    result = original(self)
    supply = supply_of(self)
    if supply is not None:
        _empty(self, supply)
        supply.clear()
        supply.pool.balance(True)  # at once: whoever flushes wants the memory
    return result


def get_all_free_pages(original: Callable[..., Any], self: Any) -> Any:
    """AROUND ``get_all_free_pages()``, which SGLang's checks read."""
    supply = supply_of(self)
    return original(self) if supply is None else supply.free_ids()
