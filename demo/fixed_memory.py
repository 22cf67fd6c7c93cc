"""What a KV cache of a fixed size holds: an engine's own, seen from outside where possible."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from demo.processes import proc_file

KIB = 1024
READ_SECONDS = 1.0
"""It stays as it is, and reading it takes 60 ms."""


class FixedHostMeter:
    """An engine's own KV cache on a CPU: anonymous memory of the size it was told, vLLM's in one
    piece, SGLang's in pieces side by side, which the kernel shows as one mapping.

    Engines fill it with zeros at the start, which makes all of it resident. That is measured
    and not assumed. The kernel may show the cache in one mapping with what lies beside it: all
    that is not resident in the mapping is then counted as missing in the cache, so that the
    reading is never too high.
    """

    def __init__(self, process_ids: Iterable[int], reserved_bytes: int) -> None:
        self._process_ids = list(process_ids)
        self._reserved = reserved_bytes
        self._held = 0
        self._expires = 0.0

    def read(self) -> int:
        if time.monotonic() >= self._expires:
            self._held = self._resident()
            self._expires = time.monotonic() + READ_SECONDS
        return self._held

    def _resident(self) -> int:
        large_enough = (
            (size, resident)
            for pid in self._process_ids
            for size, resident in _anonymous_mappings(pid)
            if size >= self._reserved
        )
        size, resident = min(large_enough, default=(0, 0))
        return max(0, self._reserved - (size - resident)) if size else 0


class FixedMeter:
    """A cache whose memory only its device sees: what vLLM was told to reserve at its start."""

    def __init__(self, reserved_bytes: int) -> None:
        self._reserved = reserved_bytes

    def read(self) -> int:
        return self._reserved


def _anonymous_mappings(pid: int) -> Iterator[tuple[int, int]]:
    """Size and resident bytes of each mapping that has no file and no name."""
    anonymous = False
    size = 0
    for line in proc_file(pid, "smaps").splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # "7f37-7f38 rw-p 00000000 00:00 0 [PATH]"
            anonymous = len(words) == 5 and words[1].startswith("rw")
        elif words[0] == "Size:":
            size = int(words[1]) * KIB
        elif words[0] == "Rss:" and anonymous:
            yield size, int(words[1]) * KIB
