"""How much memory an elastic KV cache holds, seen from outside, ten times a second.

Nothing here asks kvcached or vLLM: the kernel is asked instead.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, final

from demo.processes import proc_file

SAMPLE_SECONDS = 0.1
ELASTIC_NAME = "[anon:kvcached]"
"""What a kernel that names anonymous memory calls an elastic KV cache on a CPU."""

NOT_INHERITED = "dc"
"""What tells it apart on other kernels: the flag of memory that forked children do not get."""

PAGE_BYTES = mmap.PAGESIZE


class Meter(Protocol):
    """One way to read what a KV cache holds."""

    def read(self) -> int:
        """Bytes held now."""


class ElasticHostMeter:
    """The resident pages of an elastic KV cache on a CPU.

    Its address space is found once, in /proc/PID/smaps: it stays where it is. The parts of it
    that can be touched are then found in /proc/PID/maps and their pages counted in
    /proc/PID/pagemap. That takes 1 ms, and 9 ms more for each GiB in use; adding up the Rss
    lines of smaps takes 60 ms for a vLLM worker, too much ten times a second.
    """

    def __init__(self, process_ids: Iterable[int]) -> None:
        self._regions = [(pid, region) for pid in process_ids for region in _elastic_regions(pid)]

    def attached(self) -> bool:
        """Whether any process had such address space at the start: else nothing is elastic."""
        return bool(self._regions)

    def read(self) -> int:
        return sum(
            _resident_bytes(pid, part)
            for pid, region in self._regions
            for part in _open_parts(pid, region)
        )


@dataclass(frozen=True)
class Sample:
    """What a meter read at a moment of the monotonic clock."""

    moment: float
    held_bytes: int


@final
class Sampler:
    """Reads a meter in a thread of its own while its `with` block runs."""

    def __init__(self, meter: Meter) -> None:
        self.samples: list[Sample] = []
        self._meter = meter
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory-sampler", daemon=True)

    @property
    def seconds(self) -> float:
        """How long it has been reading."""
        return self.samples[-1].moment - self.samples[0].moment if self.samples else 0.0

    @property
    def now(self) -> int:
        """The latest reading in bytes."""
        return self.samples[-1].held_bytes if self.samples else 0

    @property
    def peak(self) -> int:
        """The largest reading in bytes."""
        return max((sample.held_bytes for sample in self.samples), default=0)

    def at(self, moment: float) -> int:
        """The reading that was current at a moment."""
        before = [sample.held_bytes for sample in self.samples if sample.moment <= moment]
        return before[-1] if before else self.now

    def _sample(self) -> None:
        while not self._stop.is_set():
            moment = time.monotonic()
            self.samples.append(Sample(moment, self._meter.read()))
            self._stop.wait(max(0.0, moment + SAMPLE_SECONDS - time.monotonic()))

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()


def _elastic_regions(pid: int) -> Iterator[tuple[int, int]]:
    """First address and end of each run of mappings that belong to an elastic KV cache."""
    mapping = region = (0, 0)
    name = ""
    for line in proc_file(pid, "smaps").splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            first, end = (int(address, 16) for address in words[0].split("-"))
            mapping = (first, end)
            name = " ".join(words[5:])
        elif words[0] == "VmFlags:" and (
            name == ELASTIC_NAME or (not name and NOT_INHERITED in words)
        ):
            if region[1] == mapping[0]:
                region = (region[0], mapping[1])
                continue
            if region != (0, 0):
                yield region
            region = mapping
    if region != (0, 0):
        yield region


def _open_parts(pid: int, region: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The parts of a region that do not fault. Without memory they would still count nothing."""
    for line in proc_file(pid, "maps").splitlines():
        addresses, access = line.split(maxsplit=2)[:2]
        first, end = (int(address, 16) for address in addresses.split("-"))
        if region[0] <= first and end <= region[1] and not access.startswith("---"):
            yield first, end


_PRESENT = bytes(value >> 7 for value in range(256))
"""The uppermost bit of a byte: in pagemap, of a page's last byte, whether it is resident."""


def _resident_bytes(pid: int, part: tuple[int, int]) -> int:
    first, end = (address // PAGE_BYTES * 8 for address in part)
    try:
        with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
            pagemap.seek(first)
            entries = pagemap.read(end - first)
    except OSError:
        return 0  # the process has ended
    return entries[7::8].translate(_PRESENT).count(1) * PAGE_BYTES
