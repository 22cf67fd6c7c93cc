"""Whether the variables say what their writer meant."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kvcached import settings
from kvcached.cli.doctor.finding import Finding, fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator


def check() -> Iterator[Finding]:
    """Settings that do not parse, and variables that nobody reads."""
    try:
        loaded = settings.load()
    except settings.SettingsError as error:
        yield fail("settings", str(error).removeprefix("kvcached: "), "correct or unset it")
    else:
        if not loaded.enabled:
            yield warn("settings", "ENABLE_KVCACHED=false: engines run vanilla", "unset it")
        else:
            known = {settings.variable_of(field) for field in settings.Settings.model_fields}
            told = " ".join(f"{name}={os.environ[name]}" for name in sorted(known & {*os.environ}))
            yield ok("settings", told or "all at their defaults")
    for line in settings.unread(os.environ):
        yield warn("settings", line.removeprefix("kvcached: "))
