"""Where engines on one machine meet: the directory of page-table rows and ledgers."""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

#: A row takes 17 bytes an extent and rank; this is more than a large engine's rows together.
ROOM_BYTES = 4 << 20

_ADVICE = (
    "mount /dev/shm (Docker: --shm-size, Kubernetes: an emptyDir with medium Memory) "
    "or set KVCACHED_SHM_DIR to a directory in memory"
)


class SharedMemoryError(RuntimeError):
    """The directory for shared memory cannot be used: which, why and what to do, in one line."""


def directory(configured: str = "", group: str = "") -> Path:
    """The directory for rows and ledgers, made where it is missing: mode 0700, or 0770 where a
    group shares it.

    `configured` is ``KVCACHED_SHM_DIR``, `group` is ``KVCACHED_SHM_GROUP``; both empty means
    ``/dev/shm/kvcached-UID``. Raises SharedMemoryError where it cannot be made, or belongs to
    somebody else.
    """
    default = f"/dev/shm/kvcached-{group or os.getuid()}"
    path = Path(configured or default)
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        if group and path.stat().st_uid == os.getuid():
            shutil.chown(path, group=group)
            path.chmod(0o2770)  # files made in it belong to the group, too
    except LookupError:
        raise SharedMemoryError(
            f"kvcached: KVCACHED_SHM_GROUP={group}: there is no such group; make it (groupadd "
            f"{group}) and add the users"
        ) from None
    except OSError as error:
        raise SharedMemoryError(f"kvcached: {path}: {error.strerror}; {_ADVICE}") from None
    # Anybody may make a link of the default's name in /dev/shm; a configured one is the user's.
    info = path.stat() if configured else path.lstat()
    if not configured and not group and info.st_uid != os.getuid():
        raise SharedMemoryError(
            f"kvcached: {path}: belongs to user {info.st_uid}; remove it or set KVCACHED_SHM_DIR"
        )
    if not stat.S_ISDIR(info.st_mode) or not os.access(path, os.W_OK | os.X_OK):
        raise SharedMemoryError(f"kvcached: {path}: not a directory to write in; {_ADVICE}")
    return path


def check_room(where: Path) -> None:
    """Raises SharedMemoryError where a directory's file system is read-only or nearly full."""
    room = os.statvfs(where)
    if room.f_flag & os.ST_RDONLY:
        raise SharedMemoryError(f"kvcached: {where}: Read-only file system; {_ADVICE}")
    free = room.f_bavail * room.f_frsize
    if free < ROOM_BYTES:
        raise SharedMemoryError(
            f"kvcached: {where}: {free} bytes free, {ROOM_BYTES} needed; {_ADVICE}"
        )


def ledger_path(where: Path, device_id: str) -> Path:
    """The file of a device's ledger; see ``_C.Driver.device_id``."""
    return where / f"{device_id}.ledger"


def row_path(where: Path, engine: str, rank: int) -> Path:
    """The file of one rank's row. `engine` names the engine; odd characters become ``-``."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", engine)
    return where / f"{name}.{rank}.row"
