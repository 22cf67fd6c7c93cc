"""Watches an engine's memory from outside, while it runs."""

from __future__ import annotations

import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from kvcached import _C

#: Seconds between two looks at the page table and at resident memory.
INTERVAL = 0.05
#: Seconds between two calls of nvidia-smi, which takes a processor for a while.
GPU_INTERVAL = 1.0


@dataclass(frozen=True)
class Reading:
    """Bytes at one moment; None for what is not there to be read."""

    time: float
    held: int | None
    """KV cache that the pagers of all ranks hold."""
    resident: int
    """Resident memory of the engine's processes; pages that two share count twice."""
    gpu: int | None
    """Used on all GPUs, by whomever."""


class Meter(threading.Thread):
    """Reads until stop(); `rows` is the engine's own directory of page-table rows."""

    def __init__(self, pid: int, rows: Path) -> None:
        super().__init__(daemon=True)
        self.readings: list[Reading] = []
        self._process = psutil.Process(pid)
        self._rows = rows
        self._attached: dict[Path, _C.Row] = {}
        self._done = threading.Event()
        self._has_gpu = True
        self._gpu: int | None = None
        self._gpu_at = 0.0

    def run(self) -> None:
        while not self._done.wait(INTERVAL):
            self.readings.append(
                Reading(time.time(), self._held(), self._resident(), self._gpu_used())
            )

    def stop(self) -> None:
        self._done.set()
        self.join()

    def _held(self) -> int | None:
        for path in self._rows.glob("*.row"):
            if path not in self._attached:
                try:
                    row = _C.Row.attach(str(path))
                    if row.describe()["mode"] == "elastic":
                        self._attached[path] = row
                except _C.Error:
                    continue  # not written yet, or just gone
        if not self._attached:
            return None
        return sum(int(row.describe()["held_bytes"]) for row in self._attached.values())

    def _resident(self) -> int:
        total = 0
        try:
            for process in (self._process, *self._process.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        except psutil.NoSuchProcess:
            return 0
        return total

    def _gpu_used(self) -> int | None:
        if self._has_gpu and time.time() - self._gpu_at > GPU_INTERVAL:
            self._gpu_at = time.time()
            try:
                done = subprocess.run(
                    ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                    capture_output=True,
                    text=True,
                    timeout=10,
                    check=True,
                )
                self._gpu = sum(int(line) for line in done.stdout.split()) << 20
            except (OSError, subprocess.SubprocessError, ValueError):
                self._has_gpu = False
        return self._gpu
