"""Whether this machine's devices and shared memory can be used."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from kvcached import _C, hooks, shm
from kvcached.cli.doctor.finding import Finding, fail, ok, warn
from kvcached.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

_NVIDIA = Path("/dev/nvidiactl")
_SHM = Path("/dev/shm")
_SHM_ADVICE = (
    "Docker: --shm-size or --ipc=host; Kubernetes: an emptyDir with medium Memory at /dev/shm"
)


def check(directory: Path, *, shared: bool) -> Iterator[Finding]:
    """Drivers, /dev/shm, and the directory where engines meet; `shared` by a group of users."""
    yield from _drivers()
    yield from _shared_memory()
    yield from _meeting_place(directory, shared=shared)


def _drivers() -> Iterator[Finding]:
    if not _NVIDIA.exists():
        yield warn(
            "cuda",
            f"no NVIDIA driver here ({_NVIDIA} is missing): engines on the CPU alone",
            "on a machine with GPUs, give them to the container: docker run --gpus all",
        )
    else:
        yield _driver(
            "cuda", "update the NVIDIA driver, or give the container a GPU that supports it"
        )
    yield _driver("cpu", "allow mmap, mprotect and madvise in the container's seccomp profile")


def _driver(device: str, advice: str) -> Finding:
    try:
        driver = hooks.driver_for(device)
        free, total = driver.memory_info()
    except _C.Error as error:
        return fail(device, str(error), advice)
    return ok(
        device,
        f"driver {driver.name}, {format_size(free)} of {format_size(total)} free, granules of "
        f"{format_size(driver.granularity)}",
    )


def _shared_memory() -> Iterator[Finding]:
    if not _SHM.is_dir():
        yield fail("shared memory", f"{_SHM} is missing", _SHM_ADVICE)
        return
    if not os.access(_SHM, os.W_OK | os.X_OK):
        yield fail("shared memory", f"{_SHM} cannot be written", f"chmod 1777 {_SHM}")
        return
    try:
        shm.check_room(_SHM)
    except shm.SharedMemoryError as error:
        yield fail("shared memory", str(error).removeprefix("kvcached: "), _SHM_ADVICE)
        return
    room = os.statvfs(_SHM)
    yield ok("shared memory", f"{_SHM} has {format_size(room.f_bavail * room.f_frsize)} free")


def _meeting_place(directory: Path, *, shared: bool) -> Iterator[Finding]:
    subject = "directory"
    try:
        info = directory.stat()
    except OSError as error:
        yield warn(subject, f"{directory}: {error.strerror}: no engine has run here yet")
        return
    if not stat.S_ISDIR(info.st_mode):
        yield fail(subject, f"{directory} is no directory", f"rm {directory}")
        return
    mode = stat.S_IMODE(info.st_mode)
    if not os.access(directory, os.W_OK | os.X_OK):
        yield fail(
            subject,
            f"{directory} of user {info.st_uid}, mode {mode:04o}, cannot be written",
            "set KVCACHED_SHM_DIR, or share it with KVCACHED_SHM_GROUP",
        )
    elif mode & 0o007:
        yield warn(
            subject,
            f"{directory} has mode {mode:04o}: everybody on this machine can change limits",
            # Of a directory that is everybody's on purpose, nobody should be advised to take it.
            "set KVCACHED_SHM_DIR to a directory of your own"
            if mode & stat.S_ISVTX
            else f"chmod {'2770' if shared else '0700'} {directory}",
        )
    elif info.st_uid != os.getuid() and not shared:
        yield warn(subject, f"{directory} belongs to user {info.st_uid}, not to you")
    else:
        yield ok(subject, f"{directory} of user {info.st_uid}, mode {mode:04o}")
