"""Events as log lines: a plugin that anybody may register."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

from kvcached.hooks import hookimpl
from kvcached.sizes import format_size

if TYPE_CHECKING:
    from kvcached.hooks import Event
    from kvcached.settings import Settings

LOGGER = "kvcached.events"
#: An engine that is short of memory is refused many times a second: one line of a kind in so many
#: seconds, which tells how many events were left out.
INTERVAL = 10.0

_LEVELS = {"commit": logging.DEBUG, "release": logging.DEBUG}
_LIMITED = {"denied", "pressure"}
_TEXT = "%(levelname)s %(asctime)s [%(name)s] %(message)s"


class EventLog:
    """Logs events to the logger ``kvcached.events``: commits and releases at DEBUG, others at INFO.

    KVCACHED_LOG_LEVEL sets the logger's level, KVCACHED_LOG_FORMAT whether a line is text or JSON.
    Where nobody has set up logging for the logger, lines go to stderr.
    """

    def __init__(self, settings: Settings) -> None:
        self._json = settings.log_format == "json"
        self._log = logging.getLogger(LOGGER)
        self._log.setLevel(settings.log_level)
        if not self._log.hasHandlers():
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(message)s" if self._json else _TEXT))
            self._log.addHandler(handler)
        self._logged: dict[tuple[str, str, str], float] = {}
        self._left_out: dict[tuple[str, str, str], int] = {}

    @hookimpl
    def kvcached_on_event(self, event: Event) -> None:
        """Logs an event, or counts it where its kind was logged a moment ago."""
        level = _LEVELS.get(event.kind, logging.INFO)
        if not self._log.isEnabledFor(level):
            return
        left_out = 0
        if event.kind in _LIMITED:
            key = (event.engine, event.kind, str(event.facts.get("state", "")))
            now = time.monotonic()
            if now - self._logged.get(key, -INTERVAL) < INTERVAL:
                self._left_out[key] = self._left_out.get(key, 0) + 1
                return
            self._logged[key] = now
            left_out = self._left_out.pop(key, 0)
        line = _as_json(event, left_out) if self._json else _as_text(event, left_out)
        self._log.log(level, "%s", line)


def _as_json(event: Event, left_out: int) -> str:
    line: dict[str, Any] = {"time": time.time(), "event": event.kind, "engine": event.engine}
    if event.extents:
        line["extents"] = event.extents
    if event.bytes:
        line["bytes"] = event.bytes
    if event.detail:
        line["detail"] = event.detail
    if left_out:
        line["left_out"] = left_out
    return json.dumps({**event.facts, **line}, default=str)


def _as_text(event: Event, left_out: int) -> str:
    facts = event.facts
    size = format_size(event.bytes)
    line = f"kvcached: {event.engine}: "
    match event.kind:
        case "commit":
            line += f"committed {event.extents} extents ({size})"
        case "release":
            line += f"released {event.extents} extents ({size})"
        case "denied":
            line += f"denied {event.extents} extents ({size}): {event.detail}"
        case "pressure" if facts.get("state") == "ended":
            line += f"gave back {size} under pressure, which ended"
        case "pressure":
            line += f"asked to give back {size}: {event.detail}"
        case "limit":
            line += f"{facts['what']} {_bound(facts, 'was')} is now {_bound(facts, 'now')}"
        case "died":
            who = ", ".join(facts.get("who", ())) or "a neighbour"
            given = f"; {size} given back" if event.bytes else ""
            doubt = "" if facts.get("certain", True) else " (or left: not all of these died)"
            line += f"{who} on {facts.get('device', 'the device')} died{doubt}{given}"
        case _:
            line += f"{event.kind}: {event.detail}"
    return f"{line} ({left_out} more left out since the last such line)" if left_out else line


def _bound(facts: dict[str, Any], which: str) -> str:
    value = facts[which]
    if value is None:
        return "none"
    return f"{value:g}" if facts["what"] == "weight" else format_size(value)
