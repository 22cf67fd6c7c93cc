"""PyTorch over a region, through DLPack. `nox -s torch` runs this with many versions of it."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from miniature import BLOCK_BYTES, BLOCKS_PER_EXTENT, Cache

from kvcached import _C

torch = pytest.importorskip("torch")

OpenCache = Callable[..., Cache]
TESTS = Path(__file__).parent
BLOCKS = 2 * BLOCKS_PER_EXTENT

#: What KV caches are made of, and the bytes of 1.0 (of 1, for integers) in memory.
TYPES = [
    ("float16", b"\x00\x3c"),
    ("bfloat16", b"\x80\x3f"),
    ("float8_e4m3fn", b"\x38"),
    ("float8_e5m2", b"\x3c"),
    ("int8", b"\x01"),
]


def committed(cache: Cache) -> Any:
    """The cache as PyTorch's bytes, its first BLOCKS blocks with memory under them."""
    pool = _C.Pool([cache.path], 0, 0)
    assert pool.ensure(BLOCKS - 1, 10.0)
    assert set(range(BLOCKS)) <= cache.committed_blocks()
    return torch.from_dlpack(cache.pager.region(0))


def of_type(tensor: Any, name: str) -> Any:
    """A region's bytes as blocks of numbers."""
    blocks = tensor.view(getattr(torch, name))
    return blocks.view(-1, BLOCK_BYTES // blocks.element_size())


def test_a_tensor_over_a_region_is_its_memory_and_keeps_it(open_cache: OpenCache) -> None:
    cache = open_cache()
    tensor = committed(cache)
    assert tensor.dtype is torch.int8
    assert tensor.shape == (cache.num_blocks * BLOCK_BYTES,)
    assert tensor.device.type == "cpu"
    assert tensor.data_ptr() == cache.address
    assert not tensor[: BLOCKS * BLOCK_BYTES].any()
    tensor[5 * BLOCK_BYTES : 6 * BLOCK_BYTES] = 9
    assert cache.holds(5, 9)
    assert cache.holds(6, 0)
    cache.close()
    gc.collect()
    assert tensor[5 * BLOCK_BYTES] == 9
    del tensor
    gc.collect()
    assert cache.resident_bytes() == 0


@pytest.mark.parametrize(("name", "one"), TYPES)
def test_what_pytorch_writes_lies_in_the_cache(
    open_cache: OpenCache, name: str, one: bytes
) -> None:
    cache = open_cache()
    blocks = of_type(committed(cache), name)
    assert blocks.shape[0] == cache.num_blocks
    blocks[BLOCKS - 1] = torch.ones(blocks.shape[1]).to(blocks.dtype)
    assert cache.content(BLOCKS - 1) == one * (BLOCK_BYTES // len(one))
    assert cache.holds(BLOCKS - 2, 0)


@pytest.mark.parametrize(("name", "one"), TYPES)
def test_what_lies_in_the_cache_is_what_pytorch_reads(
    open_cache: OpenCache, name: str, one: bytes
) -> None:
    cache = open_cache()
    blocks = of_type(committed(cache), name)
    cache.write(3, one * (BLOCK_BYTES // len(one)))
    assert bool((blocks[3].float() == 1.0).all())
    assert not blocks[4].float().any()


@pytest.mark.parametrize(("name", "one"), TYPES)
def test_blocks_are_gathered_and_scattered_by_their_numbers(
    open_cache: OpenCache, name: str, one: bytes
) -> None:
    cache = open_cache()
    blocks = of_type(committed(cache), name)
    ids = torch.tensor([5, 1, 6])
    # Indexing is not made for 8-bit floats everywhere; engines, too, index their bytes.
    raw = blocks.view(torch.uint8)
    raw[ids] = torch.tensor(list(one), dtype=torch.uint8).repeat(BLOCK_BYTES // len(one))
    values = raw[ids].view(blocks.dtype).float()
    assert bool((values == 1.0).all())
    assert [bool(blocks[block].float().any()) for block in range(BLOCKS)] == [
        block in (1, 5, 6) for block in range(BLOCKS)
    ]


def test_pytorch_loaded_before_or_after_us_is_the_same() -> None:
    for order in ("import torch; from kvcached import _C", "from kvcached import _C; import torch"):
        script = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
{order}
from miniature import Cache
import tempfile
with tempfile.TemporaryDirectory() as where:
    cache = Cache(where + "/order.row")
    block = torch.from_dlpack(cache.pager.region(0))[:16]
    block.fill_(7)
    print(int(block.sum()))
    cache.close()
"""
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == "112", done.stderr
