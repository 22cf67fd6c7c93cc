"""A KV cache in miniature: a pager over this machine's memory, and ways to look at it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

from kvcached import _C

BLOCK_BYTES = 16 << 10
BLOCKS_PER_EXTENT = 4  # one granule of the host driver


class Cache:
    """One rank's cache of one layer, as its worker holds it."""

    def __init__(
        self,
        path: str,
        num_blocks: int = 64,
        limit_bytes: int = 0,
        rank: int = 0,
        sanity_check: bool = False,
    ) -> None:
        driver = _C.host_driver()
        driver.probe()
        self.path = path
        self.num_blocks = num_blocks
        self.geometry = _C.Geometry(
            num_blocks,
            [num_blocks * BLOCK_BYTES],
            [(0, 0, BLOCK_BYTES, BLOCK_BYTES)],
            BLOCKS_PER_EXTENT,
        )
        assert self.geometry.extent_bytes(driver.granularity) == BLOCKS_PER_EXTENT * BLOCK_BYTES
        self.pager = _C.Pager(
            driver,
            self.geometry,
            path,
            "miniature",
            "layer",
            rank,
            limit_bytes,
            sanity_check=sanity_check,
        )
        self.pager.start()
        self.address = address_of(self.pager.region(0))
        self.row = _C.Row.attach(path)

    def close(self) -> None:
        """Gives everything back."""
        if hasattr(self, "pager"):
            self.pager.stop()
            del self.pager, self.row

    def block(self, block: int) -> int:
        """The address of a block."""
        return self.address + block * BLOCK_BYTES

    def fill(self, block: int, value: int) -> None:
        """Writes one byte all over a block."""
        ctypes.memset(self.block(block), value, BLOCK_BYTES)

    def write(self, block: int, content: bytes) -> None:
        """Writes a whole block."""
        assert len(content) == BLOCK_BYTES
        ctypes.memmove(self.block(block), content, BLOCK_BYTES)

    def content(self, block: int) -> bytes:
        """What a block's memory holds."""
        return ctypes.string_at(self.block(block), BLOCK_BYTES)

    def holds(self, block: int, value: int) -> bool:
        """Whether a block is that byte all over."""
        return self.content(block) == bytes([value]) * BLOCK_BYTES

    def committed_blocks(self) -> set[int]:
        """The blocks whose extent the row calls committed."""
        return {
            block
            for block in range(self.num_blocks)
            if self.row.state(block // BLOCKS_PER_EXTENT) == "committed"
        }

    def resident_bytes(self) -> int:
        """Physical memory under the cache, as the kernel counts it."""
        end = self.address + self.num_blocks * BLOCK_BYTES
        found = 0
        inside = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                first, last = (int(part, 16) for part in words[0].split("-"))
                inside = self.address <= first and last <= end
            elif inside and words[0] == "Rss:":
                found += int(words[1]) << 10
        return found


def address_of(capsule: object) -> int:
    """The data address of a DLPack capsule."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    # A DLManagedTensor begins with its DLTensor, and that with the data pointer.
    return ctypes.c_uint64.from_address(get_pointer(capsule, b"dltensor")).value


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether a condition becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True
