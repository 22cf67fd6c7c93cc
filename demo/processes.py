"""A server's processes: which they are, how they end, and what they would leave behind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import final

import psutil

STOP_SECONDS = 15.0
SHARED_MEMORY = re.compile(r"/dev/shm/(psm_|sem\.mp-|sgl_shm_|sglang_)[^/ ]+$")
"""Python's shared memory and semaphores, by which vLLM's processes pass requests to each other, and
SGLang's. A process that is killed leaves its own behind."""


@final
class ProcessTree:
    """A process and its descendants, remembered: those of a dead parent are no longer found."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._members: dict[int, psutil.Process] = {}
        self._leftovers: set[Path] = set()
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

    def ask_to_end(self) -> None:
        """Send the root SIGTERM, without waiting. It takes the others down with it: a signal to
        all at once makes vLLM's engine report the death of its workers as an error."""
        self.look()
        self._leftovers |= shared_memory_files(self.process_ids)
        with suppress(psutil.NoSuchProcess, KeyError):
            self._members[self._root].terminate()

    def wait_for_end(self) -> None:
        """Wait until all have ended; kill who does not follow, and remove what they leave in
        /dev/shm."""
        _, alive = psutil.wait_procs(self._members.values(), timeout=STOP_SECONDS)
        for member in alive:
            member.kill()
        psutil.wait_procs(alive, timeout=STOP_SECONDS)
        for file in self._leftovers:
            file.unlink(missing_ok=True)


def shared_memory_files(process_ids: Iterable[int]) -> set[Path]:
    """What these processes have mapped of Python's shared memory, and nobody has removed."""
    found = set()
    for pid in process_ids:
        for line in proc_file(pid, "maps").splitlines():
            if file := SHARED_MEMORY.search(line):
                found.add(Path(file[0]))
    return found


def proc_file(pid: int, name: str) -> str:
    """The text of /proc/PID/NAME; empty when the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
