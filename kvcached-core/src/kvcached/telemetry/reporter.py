"""Tells listeners what happened to an engine's memory, away from its steps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kvcached import _C, hooks
from kvcached.telemetry.event_log import EventLog
from kvcached.telemetry.events import EventSource

if TYPE_CHECKING:
    from kvcached.settings import Settings

#: Between looks, in seconds.
INTERVAL = 1.0
_LOG = "kvcached-event-log"


class EventReporter:
    """Compares the engine's rows and ledgers from time to time and emits what changed."""

    def __init__(self, settings: Settings, paths: list[str], group: str, instance: str) -> None:
        """`paths`: the rows of all ranks."""
        manager = hooks.manager()
        if not manager.has_plugin(_LOG):
            manager.register(EventLog(settings), name=_LOG)
        self._rows = [_C.Row.attach(path) for path in paths]
        ledgers = {row.describe()["ledger"] for row in self._rows}
        self._ledgers = [_C.Ledger.open(path) for path in sorted(ledgers) if path]
        self._source = EventSource(group, instance)
        self._next = 0.0

    def look(self) -> float:
        """Emits what happened since the last look, at most once an interval; returns the seconds
        until there is reason to look again."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + INTERVAL
            rows = [row.describe() for row in self._rows]
            ledgers = [ledger.describe() for ledger in self._ledgers]
            for event in self._source.compare(rows, ledgers):
                hooks.emit(event)
        return self._next - now
