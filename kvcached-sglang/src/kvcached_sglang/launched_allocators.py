"""SGLang's allocators of 0.5.9 and 0.5.10 over a supply: our hooks as a subclass's methods."""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator, TokenToKVPoolAllocator

from kvcached_sglang import allocators


class ElasticTokenAllocator(TokenToKVPoolAllocator):  # type: ignore[misc]
    """One token a page."""

    def available_size(self) -> Any:
        return allocators.available_size(TokenToKVPoolAllocator.available_size, self)

    def alloc(self, need_size: int) -> Any:
        return allocators.alloc(TokenToKVPoolAllocator.alloc, self, need_size)

    def free(self, *args: Any, **kwargs: Any) -> Any:
        return allocators.free(TokenToKVPoolAllocator.free, self, *args, **kwargs)

    def clear(self) -> Any:
        return allocators.clear(TokenToKVPoolAllocator.clear, self)


class ElasticPagedAllocator(PagedTokenToKVPoolAllocator):  # type: ignore[misc]
    """Several tokens a page."""

    def available_size(self) -> Any:
        return allocators.available_size(PagedTokenToKVPoolAllocator.available_size, self)

    def alloc(self, need_size: int) -> Any:
        return allocators.alloc(PagedTokenToKVPoolAllocator.alloc, self, need_size)

    def alloc_extend(self, *args: Any, **kwargs: Any) -> Any:
        stock = PagedTokenToKVPoolAllocator.alloc_extend
        return allocators.alloc_extend(stock, self, *args, **kwargs)

    def alloc_decode(self, *args: Any, **kwargs: Any) -> Any:
        stock = PagedTokenToKVPoolAllocator.alloc_decode
        return allocators.alloc_decode(stock, self, *args, **kwargs)

    def free(self, *args: Any, **kwargs: Any) -> Any:
        return allocators.free(PagedTokenToKVPoolAllocator.free, self, *args, **kwargs)

    def clear(self) -> Any:
        return allocators.clear(PagedTokenToKVPoolAllocator.clear, self)


_ELASTIC = {
    TokenToKVPoolAllocator: ElasticTokenAllocator,
    PagedTokenToKVPoolAllocator: ElasticPagedAllocator,
}


def elastic_allocator(stock: Any) -> Any:
    """An elastic allocator in place of one that SGLang has just made; of a kind that is not
    covered, the same."""
    made = _ELASTIC.get(type(stock))
    if made is None:
        return stock
    common = {
        "dtype": stock.dtype,
        "device": stock.device,
        "kvcache": stock.get_kvcache(),
        "need_sort": stock.need_sort,
    }
    if made is ElasticPagedAllocator:
        common["page_size"] = stock.page_size
    return made(stock.size, **common)
