"""Reads from /proc how much memory a KV cache holds, whoever claims what.

On a machine without a GPU kvcached's regions are anonymous memory that forked children do not
inherit. A kernel that names anonymous memory calls it "[anon:kvcached]"; on every other its flag
for that ("dc", for "do not copy") tells it apart, since nothing else in a vLLM process has it. The
kernel's own account of these mappings is the evidence; nothing here asks kvcached.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

MAPPING_NAME = "[anon:kvcached]"
NOT_INHERITED = "dc"

_HEADER = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+\s*(.*)$")
_RSS = re.compile(r"^Rss:\s+(\d+) kB")
_FLAGS = "VmFlags:"


@dataclass(frozen=True)
class KvMemory:
    """Bytes of KV cache: with memory behind them, resident, and merely reserved."""

    mappings: int = 0
    mapped: int = 0
    resident: int = 0
    reserved: int = 0

    def __add__(self, other: KvMemory) -> KvMemory:
        return KvMemory(
            self.mappings + other.mappings,
            self.mapped + other.mapped,
            self.resident + other.resident,
            self.reserved + other.reserved,
        )

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def of_process(pid: int) -> KvMemory:
    """Sum one process's KV mappings; nothing, if it is gone or may not be read."""
    try:
        smaps = Path(f"/proc/{pid}/smaps").read_text()
    except OSError:
        return KvMemory()
    return sum(_kv_mappings(smaps), KvMemory())


def of_tree(pid: int) -> KvMemory:
    """Sum the KV mappings of a process and of everything it started.

    Regions are not inherited by forked children, so nothing is counted twice.
    """
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    family = [pid]
    for member in family:  # Grows as it goes.
        family += children.get(member, [])
    return sum((of_process(member) for member in family), KvMemory())


def _parents() -> Iterator[tuple[int, int]]:
    """Yield every process with its parent."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command's name, in parentheses, may hold anything; behind it come the
            # state and the parent.
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        yield int(stat.parent.name), int(fields[1])


@dataclass
class _Mapping:
    start: int
    end: int
    access: str
    name: str
    resident: int = 0
    flags: set[str] = field(default_factory=set)

    @property
    def ours(self) -> bool:
        return self.name == MAPPING_NAME or (not self.name and NOT_INHERITED in self.flags)

    @property
    def reservation(self) -> bool:
        """Whether it is address space alone, which faults on any access."""
        return self.access.startswith("---")


def _kv_mappings(smaps: str) -> Iterator[KvMemory]:
    for mapping in _mappings(smaps):
        size = mapping.end - mapping.start
        if mapping.ours and mapping.reservation:
            yield KvMemory(reserved=size, resident=mapping.resident)
        elif mapping.ours:
            yield KvMemory(mappings=1, mapped=size, resident=mapping.resident)


def _mappings(smaps: str) -> Iterator[_Mapping]:
    """Yield a process's mappings in the order of their addresses."""
    current: _Mapping | None = None
    for line in smaps.splitlines():
        if header := _HEADER.match(line):
            if current:
                yield current
            start, end, access, name = header.groups()
            current = _Mapping(int(start, 16), int(end, 16), access, name)
        elif current and (rss := _RSS.match(line)):
            current.resident = int(rss.group(1)) * 1024
        elif current and line.startswith(_FLAGS):
            current.flags = set(line.removeprefix(_FLAGS).split())
    if current:
        yield current
