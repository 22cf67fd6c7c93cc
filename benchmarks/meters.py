"""Watches engines' memory from outside, while they run."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.gpu_memory import GpuMemory
from kvcached import _C

#: Seconds between two looks.
INTERVAL = 0.05
_LONGEST = "longest_wait_ns"
#: A row's counters that a benchmark may ask for.
_COUNTERS = (
    "commits",
    "releases",
    "denials",
    "commit_ns",
    "release_ns",
    "waits",
    "waited_extents",
    "exposed_extents",
    "wait_ns",
    _LONGEST,
)


@dataclass(frozen=True)
class Reading:
    """Bytes at one moment; None for what is not there to be read."""

    time: float
    held: int | None
    """KV cache that the pagers of all ranks hold."""
    resident: int
    """Resident memory of the engines' processes; pages that two share count twice."""
    gpus: tuple[int, ...] = ()
    """Used on each GPU, by whomever; none where there is no GPU."""
    held_by: dict[str, int] = field(default_factory=dict)
    """KV cache by KVCACHED_IPC_NAME."""
    counters: dict[str, int] = field(default_factory=dict)
    """Sums over the rows; the longest wait is the longest of all."""

    @property
    def gpu(self) -> int | None:
        """Used on all GPUs together; None where there is none."""
        return sum(self.gpus) if self.gpus else None


class Meter(threading.Thread):
    """Reads until stop(); `rows` is the engines' own directory of page-table rows."""

    def __init__(self, pids: Sequence[int], rows: Path) -> None:
        super().__init__(daemon=True)
        self.readings: list[Reading] = []
        self._pids = pids
        self._rows = rows
        self._attached: dict[Path, _C.Row] = {}
        self._done = threading.Event()
        self._gpu = GpuMemory()

    def run(self) -> None:
        while not self._done.wait(INTERVAL):
            self.readings.append(self._read())

    def stop(self) -> None:
        self._done.set()
        self.join()

    def _read(self) -> Reading:
        rows: list[dict[str, object]] = []
        held: Counter[str] = Counter()
        for path, row in self._elastic_rows():
            rows.append(dict(row.describe()))
            held[_group(path)] += int(str(rows[-1]["held_bytes"]))
        return Reading(
            time=time.time(),
            held=sum(held.values()) if rows else None,
            resident=self._resident(),
            gpus=self._gpu.used(),
            held_by=dict(held),
            counters={
                name: (max if name == _LONGEST else sum)(int(str(row[name])) for row in rows)
                for name in _COUNTERS
                if rows
            },
        )

    def _elastic_rows(self) -> list[tuple[Path, _C.Row]]:
        for path in self._rows.glob("*.row"):
            if path not in self._attached:
                try:
                    row = _C.Row.attach(str(path))
                    if row.describe()["mode"] == "elastic":
                        self._attached[path] = row
                except _C.Error:
                    continue  # not written yet, or just gone
        return list(self._attached.items())

    def _resident(self) -> int:
        total = 0
        for pid in self._pids:
            try:
                process = psutil.Process(pid)
                family = [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            for member in family:
                try:
                    total += int(member.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
        return total


def _group(row: Path) -> str:
    # kvcached_GROUP-INSTANCE.RANK.row
    return row.name.removeprefix("kvcached_").split("-")[0]
