"""How much memory a server's KV cache holds, seen from outside, ten times a second.

Nothing here asks kvcached or vLLM: the kernel (or the NVIDIA driver) is asked instead.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, final

SAMPLE_SECONDS = 0.1
ELASTIC_FILE = "/memfd:kvcached"
"""The file that backs the elastic KV cache on a machine without a GPU."""

KIB = 1024
STAT_BLOCK_BYTES = 512


class Meter(Protocol):
    """One way to read what a KV cache holds."""

    def read(self) -> int:
        """Bytes held now."""


class ElasticHostMeter:
    """The pages of the memory files that back an elastic KV cache on a CPU.

    The pages in such a file are the ones resident in its mappings, since kvcached maps what
    it allocates. Asking the file takes microseconds; adding up the Rss lines of
    /proc/PID/smaps takes 60 ms for a vLLM worker, too much ten times a second.
    """

    def __init__(self, process_ids: Iterable[int]) -> None:
        self._process_ids = list(process_ids)

    def attached(self) -> bool:
        """Whether any process has mapped such a file: without one nothing is elastic."""
        return any(ELASTIC_FILE in _read(pid, "maps") for pid in self._process_ids)

    def read(self) -> int:
        # By inode: a process may hold a file twice, and two processes the same one.
        sizes: dict[int, int] = {}
        for pid in self._process_ids:
            for held in _elastic_files(pid):
                sizes[held.st_ino] = held.st_blocks * STAT_BLOCK_BYTES
        return sum(sizes.values())


class VanillaHostMeter:
    """vLLM's own KV cache on a CPU: anonymous memory of about the size it was told to take.

    vLLM fills it with zeros at the start, which makes all of it resident. That is measured
    here (Rss) and not assumed. It stays as it is, so it is read once a second only.
    """

    def __init__(self, process_ids: Iterable[int], reserved_bytes: int) -> None:
        self._process_ids = list(process_ids)
        self._at_least = reserved_bytes // 2
        self._held = 0
        self._expires = 0.0

    def read(self) -> int:
        if time.monotonic() >= self._expires:
            self._held = sum(
                resident
                for pid in self._process_ids
                for size, resident in _anonymous_mappings(pid)
                if size >= self._at_least
            )
            self._expires = time.monotonic() + 1.0
        return self._held


class GpuMeter:
    """A server's whole GPU memory: what the GPUs hold beyond what they held before it.

    Weights and workspace are in it. Per-process figures would be better, but nvidia-smi does
    not show them inside most containers.
    """

    def __init__(self, before_bytes: int) -> None:
        self._before = before_bytes

    def read(self) -> int:
        return max(0, gpu_bytes_used() - self._before)


def gpu_bytes_used() -> int:
    """Memory in use on all visible NVIDIA GPUs. Costs some 50 ms."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    printed = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    return sum(int(line) for line in printed.split()) * KIB * KIB


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


def _elastic_files(pid: int) -> Iterator[os.stat_result]:
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if str(descriptor.readlink()).startswith(ELASTIC_FILE):
                    yield descriptor.stat()
            except OSError:
                continue  # closed since it was listed
    except OSError:
        return  # the process has ended


def _anonymous_mappings(pid: int) -> Iterator[tuple[int, int]]:
    """Size and resident bytes of each mapping that has no file and no name."""
    anonymous = False
    size = 0
    for line in _read(pid, "smaps").splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # "7f37-7f38 rw-p 00000000 00:00 0 [PATH]"
            anonymous = len(words) == 5
        elif words[0] == "Size:":
            size = int(words[1]) * KIB
        elif words[0] == "Rss:" and anonymous:
            yield size, int(words[1]) * KIB


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""  # the process has ended
