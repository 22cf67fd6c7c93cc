"""Waiting for room on a device that neighbours have filled.

What an engine works with beside weights and cache comes from its framework's allocator, which fails
at once where the device is full. A neighbour may be giving memory back just then, so it is tried
again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

#: Between two tries while the device has no room, in seconds.
_RETRY = 0.01
#: Between two lines about it, in seconds.
_SAY_AGAIN = 10.0
#: After this, the work is tried all the same, and fails as it would without kvcached; in seconds.
_PATIENCE = 120.0


def take_when_there_is_room(
    take: Callable[[], object], full: type[Exception], size: int, work: str, log: logging.Logger
) -> bool:
    """Calls `take` until it no longer raises `full`; returns False where it did for two minutes.

    For the lines in `log`: `size` is what it takes, in bytes, and `work` what that is for.
    """
    began = said = time.monotonic()
    while True:
        try:
            take()
        except full:
            now = time.monotonic()
            if now - began > _PATIENCE:
                log.error(
                    "kvcached: the device had no %d MiB for a %s in %d s",
                    size >> 20,
                    work,
                    _PATIENCE,
                )
                return False
            if now - said > _SAY_AGAIN:
                said = now
                log.warning(
                    "kvcached: a %s waits for %d MiB beside the cache; the device is full",
                    work,
                    size >> 20,
                )
            time.sleep(_RETRY)
        else:
            return True
