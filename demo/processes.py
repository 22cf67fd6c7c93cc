"""A server's processes: which they are, how they end, and what they would leave behind."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import final

import psutil

STOP_SECONDS = 15.0
SHARED_MEMORY = "/dev/shm/psm_"
"""How Python names shared memory, through which vLLM's processes pass requests."""


@final
class ProcessTree:
    """A process and its descendants, remembered: those of a dead parent are no longer found."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._members: dict[int, psutil.Process] = {}
        self.look()

    @property
    def process_ids(self) -> list[int]:
        """Every process seen so far, the root first."""
        return list(self._members)

    def look(self) -> None:
        """Note the processes that are in the tree now."""
        try:
            root = psutil.Process(self._root)
            for one in (root, *root.children(recursive=True)):
                self._members.setdefault(one.pid, one)
        except psutil.NoSuchProcess:
            pass

    def end(self) -> None:
        """End the root and wait for all; kill who does not follow, and remove what they leave in
        /dev/shm."""
        self.look()
        leftovers = shared_memory_files(self.process_ids)
        # The root takes the others down with it; a signal to all at once makes vLLM's engine
        # report the death of its workers as an error.
        with suppress(psutil.NoSuchProcess, KeyError):
            self._members[self._root].terminate()
        _, alive = psutil.wait_procs(self._members.values(), timeout=STOP_SECONDS)
        for member in alive:
            member.kill()
        psutil.wait_procs(alive, timeout=STOP_SECONDS)
        for file in leftovers:
            file.unlink(missing_ok=True)


def shared_memory_files(process_ids: Iterable[int]) -> set[Path]:
    """The shared memory of Python's that these processes have mapped."""
    found = set()
    for pid in process_ids:
        for line in proc_file(pid, "maps").splitlines():
            _, there, name = line.partition(SHARED_MEMORY)
            if there and not name.endswith(" (deleted)"):
                found.add(Path(SHARED_MEMORY + name))
    return found


def proc_file(pid: int, name: str) -> str:
    """The text of /proc/PID/NAME; empty when the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
