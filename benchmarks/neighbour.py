"""The program in the stranger's process for benchmarks.stranger: takes and frees device memory at
random, outside any account.

Started with one argument, the order as JSON; ends at SIGTERM. It prints a line of JSON whenever it
took, freed or failed to take memory. It leaves `headroom` free as somebody would who does not want
to crash himself, and being refused is no failure: then it frees something.

Where `fill` is asked for it does not wander: it takes all there is but `headroom`, keeps it for
some seconds, and gives everything back.

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
from dataclasses import dataclass, field
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
    """cuMemAlloc and cuMemFree on one device."""

    def __init__(self, ordinal: int = 0) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), ordinal)
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


@dataclass
class Hoard:
    """What the stranger holds, and the line it prints whenever that changes."""

    memory: _Memory
    headroom: int
    pieces: list[tuple[int, Any]] = field(default_factory=list)

    @property
    def held(self) -> int:
        return sum(size for size, _ in self.pieces)

    def take(self, size: int) -> None:
        """Raises Refused."""
        if self.memory.free() - size < self.headroom:
            raise Refused("too little would be left")
        self.pieces.append((size, self.memory.take(size)))

    def give_back(self, index: int) -> None:
        _, piece = self.pieces.pop(index)
        self.memory.give_back(piece)

    def say(self, refused: str | None = None) -> None:
        line = {"time": time.time(), "held": self.held, "refused": refused}
        print(json.dumps(line), flush=True)


def wander(hoard: Hoard, order: dict[str, Any]) -> None:
    """Takes and frees until told to end. `most` and `piece` are bytes."""
    generator = random.Random(order["seed"])
    while True:
        # A level to go to, so that what is held swings between nothing and everything.
        goal = generator.uniform(0, order["most"])
        while abs(goal - hoard.held) > _SMALLEST:
            time.sleep(generator.expovariate(1 / _PAUSE))
            refused = None
            if hoard.held < goal:
                try:
                    size = generator.uniform(_SMALLEST, order["piece"])
                    hoard.take(int(min(goal - hoard.held, size)))
                except Refused as reason:
                    refused, goal = str(reason), generator.uniform(0, hoard.held)
            else:
                hoard.give_back(generator.randrange(len(hoard.pieces)))
            hoard.say(refused)


def fill(hoard: Hoard, order: dict[str, Any]) -> None:
    """Takes what there is, keeps it for `seconds` and frees it, until told to end."""
    while True:
        size = order["piece"]
        while size >= _SMALLEST and hoard.held < order["most"]:
            try:
                hoard.take(min(size, order["most"] - hoard.held))
                hoard.say()
            except Refused as reason:
                hoard.say(str(reason))
                size //= 2
        time.sleep(order["seconds"])
        while hoard.pieces:
            hoard.give_back(-1)
        hoard.say()
        time.sleep(order["seconds"])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    told = json.loads(sys.argv[1])
    own = Hoard(Cuda(told["device"]) if told["gpu"] else Host(), told["headroom"])
    (fill if told["fill"] else wander)(own, told)
