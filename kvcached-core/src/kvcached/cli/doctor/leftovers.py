"""What dead engines have left, and what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kvcached import _C, inventory
from kvcached.cli.doctor.finding import Finding, fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

_DELETE = "kvctl delete"


def check(directory: Path) -> Iterator[Finding]:
    """Ledgers and rows of the directory, and other users' directories beside it."""
    devices, problems = inventory.devices(directory)
    yield from _unreadable(problems)
    members = inventory.instances(devices)
    for member in members:
        if member.state == "dead":
            yield warn("ledgers", f"{member.name} is dead and its lease still there", _DELETE)
        elif member.state == "stalled":
            pids = " ".join(map(str, member.pids))
            yield warn(
                "ledgers",
                f"{member.name} was silent for {member.seen_seconds_ago:.0f} s and keeps its share",
                f"look at its processes ({pids}): kill -CONT, or end them",
            )
    for device in devices:
        if not device.leases:
            yield warn("ledgers", f"nobody uses {device.path}", _DELETE)
    living = sum(member.alive for member in members)
    yield ok("ledgers", f"{len(devices)} readable, {living} living engines")
    yield from _rows(directory)
    yield from _other_users()


def _unreadable(problems: list[inventory.Problem]) -> Iterator[Finding]:
    for problem in problems:
        text = f"{problem.path}: {problem.reason}"
        if Path(problem.path).stat().st_uid == os.getuid():
            advice = f"end the engines of the other version, then rm {problem.path}"
            yield fail("ledgers", text, advice)
        else:
            yield fail("ledgers", text, "share devices with KVCACHED_SHM_GROUP, on both sides")


def _rows(directory: Path) -> Iterator[Finding]:
    stale = 0
    for path in sorted(map(str, directory.glob("*.row"))):
        try:
            row = _C.Row.attach(path).describe()
        except _C.Error as error:
            if "left behind" in str(error):
                stale += 1
            elif Path(path).exists():
                yield warn("rows", str(error), f"end its engine, then rm {path}")
            continue
        if row["mode"] == "vanilla":
            yield warn(
                "rows", f"{row['engine']} (process {row['pid']}) is vanilla: {row['reason']}"
            )
    if stale:
        yield warn("rows", f"{stale} left behind by dead engines in {directory}", _DELETE)


def _other_users() -> Iterator[Finding]:
    for path in sorted(Path("/dev/shm").glob("kvcached-*")):
        try:
            info = path.stat()
        except OSError:
            continue
        if path.is_dir() and info.st_uid != os.getuid() and not os.access(path, os.W_OK):
            yield warn(
                "ledgers",
                f"{path} is user {info.st_uid}'s: engines there and yours do not share by demand",
                "where they use the same device, set KVCACHED_SHM_GROUP on both sides",
            )
