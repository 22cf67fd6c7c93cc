"""What was held over the last minutes."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcached.cli.place import Reading

#: How far back graphs go.
SECONDS = 180.0
# A rate over less than this is noise, over much more it is history.
_RATE_SECONDS = 2.0


class History:
    """Bytes held by each instance at each look, SECONDS back."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, dict[str, int]]] = deque()

    def note(self, found: Reading, now: float | None = None) -> None:
        """Takes a look in; `now` is monotonic seconds."""
        when = time.monotonic() if now is None else now
        self._looks.append((when, {member.name: member.held for member in found.instances}))
        while self._looks[0][0] < when - SECONDS:
            self._looks.popleft()

    @property
    def names(self) -> list[str]:
        """Everybody who was seen, in the order of appearance."""
        return list(dict.fromkeys(name for _, held in self._looks for name in held))

    def rate(self, name: str) -> float | None:
        """Bytes a second by which an instance has grown of late; None where it is not known."""
        known = [(when, held[name]) for when, held in self._looks if name in held]
        if len(known) < 2:
            return None
        now, latest = known[-1]
        old_enough = [look for look in known if now - look[0] >= _RATE_SECONDS]
        then, earlier = old_enough[-1] if old_enough else known[0]
        return (latest - earlier) / (now - then) if now > then else None

    def held(self, name: str, points: int) -> list[int]:
        """An instance's bytes over SECONDS in so many equal parts, the latest last; 0 where it is
        not known to have held anything."""
        found: list[int | None] = [None] * points
        for when, held in self._looks:
            age = self._looks[-1][0] - when
            part = max(points - 1 - int(age / SECONDS * points), 0)
            # The peak of a part, so that a short burst is seen.
            found[part] = max(found[part] or 0, held.get(name, 0))
        return _without_gaps(found)


def _without_gaps(found: list[int | None]) -> list[int]:
    """Between two looks it was as at the first."""
    whole = []
    last = 0
    for value in found:
        last = last if value is None else value
        whole.append(last)
    return whole
