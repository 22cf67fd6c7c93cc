"""What memory calls cost the kernels that run beside them.

A stand-in for a decoding step runs again and again: the matrix products of a model's layers, as one
CUDA graph on a GPU, so that the processor has next to nothing to do with it. Once in every step
another thread does something to memory that the step does not touch:

  commit         create, map and set access of a handle, by the driver
  release        unmap and destroy of one
  zero           a memset of as much on a stream of its own, and the wait for it
  pager          pool and pager grow by an extent: a commit, zeroed

Each row is the time of a step with it over one without, in neighbouring turns; `a call` is what one
of them took by itself.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import pagers, scratch
from benchmarks.report import Report, Row, arguments_of
from benchmarks.samples import Samples, ratios
from benchmarks.shapes import Shape

MIB = 1 << 20
#: Steps of one turn.
STEPS = 40


class Steps:
    """The steps of a model of `layers` matrices, for a batch of `batch` rows."""

    def __init__(self, device: str, layers: int, width: int, batch: int) -> None:
        self._on_gpu = device == "cuda"
        kind = torch.bfloat16 if self._on_gpu else torch.float32
        self._layers = [torch.randn(width, width, device=device, dtype=kind) for _ in range(layers)]
        self._batch = torch.randn(batch, width, device=device, dtype=kind)
        self._graph: Any = None
        if self._on_gpu:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                self._compute()  # cuBLAS makes its workspace outside of the capture
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._compute()

    def _compute(self) -> None:
        rows = self._batch
        for layer in self._layers:
            rows = torch.nn.functional.normalize(rows @ layer)

    def run(self, each: Callable[[], None]) -> float:
        """Seconds a step, of STEPS; `each` is called as one begins. Two are in the device's queue
        at a time, as under asynchronous scheduling."""
        ends: list[Any] = []
        began = time.perf_counter()
        for _ in range(STEPS):
            each()
            if self._on_gpu:
                self._graph.replay()
                ends.append(torch.cuda.Event())
                ends[-1].record()
                if len(ends) > 1:
                    ends[-2].synchronize()
            else:
                self._compute()
        if self._on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / STEPS


def beside(steps: Steps, act: Callable[[], None]) -> tuple[float, float]:
    """Seconds a step while a thread does `act` once in each, and seconds that one of them took."""

    def timed() -> float:
        began = time.perf_counter()
        act()
        return time.perf_counter() - began

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        done: list[concurrent.futures.Future[float]] = []
        took = steps.run(lambda: done.append(thread.submit(timed)))
        return took, sum(each.result() for each in done) / len(done)


class Handles:
    """Handles of one size, committed and released one by one."""

    def __init__(self, driver: Any, size: int) -> None:
        self._driver, self._size = driver, size
        self._base = driver.reserve(size * STEPS)
        self._held: list[int] = []

    def commit(self) -> None:
        address = self._base + len(self._held) * self._size
        handle = self._driver.create(self._size)
        self._driver.map(address, self._size, handle)
        self._driver.set_access(address, self._size)
        self._held.append(handle)

    def release(self) -> None:
        handle = self._held.pop()
        self._driver.unmap(self._base + len(self._held) * self._size, self._size)
        self._driver.destroy(handle, self._size)


def zeroing(device: str, size: int) -> Callable[[], None]:
    """A memset of `size` bytes on a stream of its own."""
    memory = torch.empty(size, dtype=torch.uint8, device=device)
    stream = torch.cuda.Stream() if device == "cuda" else None

    def act() -> None:
        with torch.cuda.stream(stream):
            memory.zero_()
        if stream is not None:
            stream.synchronize()

    return act


def measure(report: Report, options: argparse.Namespace) -> None:
    """Adds a row for each kind of call."""
    device = "cuda" if options.driver == "cuda" else "cpu"
    size = options.mib * MIB
    steps = Steps(device, options.layers, options.width, options.batch)
    handles = Handles(pagers.driver_of(options.driver), size)
    with (
        scratch.directory() as directory,
        pagers.engine(options.driver, Shape("", 1, size), STEPS, directory) as engine,
    ):
        # In this order: what one commits the next releases.
        acts: dict[str, Callable[[], None]] = {
            "commit": handles.commit,
            "release": handles.release,
            "zero": zeroing(device, size),
            "pager": lambda: engine.grow(1),
        }
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in acts}
        for turn in range(options.rounds + 1):
            for name, act in acts.items():
                without = steps.run(lambda: None)
                with_it, took = beside(steps, act)
                if turn > 0:  # the first time everything is cold
                    found[name].append((with_it, without, took))
            engine.release_all()
    for name, times in found.items():
        together, alone, call = (
            Samples("us", [1e6 * value for value in column]) for column in zip(*times, strict=True)
        )
        more = [mine - other for mine, other in zip(together.values, alone.values, strict=True)]
        parts = {"beside": together, "alone": alone, "a call": call}
        report.add(Row(name, ratios(together, alone), None, parts))
        report.add(Row(f"{name}: more a step", Samples("us", more)))


def main() -> int:
    parser = arguments_of(__doc__ or "")
    add = parser.add_argument
    add("--driver", choices=("host", "cuda"), default="host")
    add("--rounds", type=int, default=11)
    add("--mib", type=int, default=16, help="MiB of one handle")
    add("--layers", type=int, default=64, help="matrices of a step")
    add("--width", type=int, default=8192, help="rows and columns of one")
    add("--batch", type=int, default=128)
    options = parser.parse_args()
    if options.quick or options.driver == "host":
        options.layers, options.width, options.batch = 4, 512, 32
        options.mib = min(options.mib, 2)
        options.rounds = min(options.rounds, 3)
    report = Report("interference", options)
    measure(report, options)
    return report.finish(
        f"A step beside memory calls of {options.mib} MiB, {options.driver} driver"
    )


if __name__ == "__main__":
    sys.exit(main())
