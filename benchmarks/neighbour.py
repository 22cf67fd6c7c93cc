"""The program in the stranger's process for benchmarks.stranger: takes and frees device memory at
random, outside any account.

Started with one argument, the order as JSON; ends at SIGTERM. It prints a line of JSON whenever it
took, freed or failed to take memory. It leaves `headroom` free as somebody would who does not want
to crash himself, and being refused is no failure: then it frees something.

On a GPU it calls the CUDA driver itself; without one it takes anonymous memory of the host.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import random
import signal
import sys
import time
from typing import Any, Protocol

import psutil

_SMALLEST = 64 << 20
#: Seconds between two changes, on average.
_PAUSE = 0.2


class Refused(RuntimeError):
    """There is no memory."""


class _Memory(Protocol):
    def free(self) -> int: ...
    def take(self, size: int) -> Any: ...
    def give_back(self, piece: Any) -> None: ...


class Host:
    """Anonymous memory, every page of it touched."""

    def free(self) -> int:
        return int(psutil.virtual_memory().available)

    def take(self, size: int) -> mmap.mmap:
        try:
            piece = mmap.mmap(-1, size)
            for page in range(0, size, mmap.PAGESIZE):
                piece[page] = 1
        except OSError as error:
            raise Refused(str(error)) from None
        return piece

    def give_back(self, piece: mmap.mmap) -> None:
        piece.close()


class Cuda:
    """cuMemAlloc and cuMemFree on the first device."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)

    def free(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def take(self, size: int) -> ctypes.c_uint64:
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address

    def give_back(self, piece: ctypes.c_uint64) -> None:
        self._call("cuMemFree_v2", piece)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status != 0:
            raise Refused(f"{name}: CUDA error {status}")


def wander(memory: _Memory, order: dict[str, Any]) -> None:
    """Takes and frees until told to end. `most`, `piece` and `headroom` are bytes."""
    generator = random.Random(order["seed"])
    pieces: list[tuple[int, Any]] = []
    while True:
        held = sum(size for size, _ in pieces)
        # A level to go to, so that what is held swings between nothing and everything.
        goal = generator.uniform(0, order["most"])
        while abs(goal - held) > _SMALLEST:
            time.sleep(generator.expovariate(1 / _PAUSE))
            refused = None
            if held < goal:
                size = int(min(goal - held, generator.uniform(_SMALLEST, order["piece"])))
                try:
                    if memory.free() - size < order["headroom"]:
                        raise Refused("too little would be left")
                    pieces.append((size, memory.take(size)))
                except Refused as reason:
                    refused, goal = str(reason), generator.uniform(0, held)
            else:
                _, piece = pieces.pop(generator.randrange(len(pieces)))
                memory.give_back(piece)
            held = sum(size for size, _ in pieces)
            print(json.dumps({"time": time.time(), "held": held, "refused": refused}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    told = json.loads(sys.argv[1])
    wander(Cuda() if told["gpu"] else Host(), told)
