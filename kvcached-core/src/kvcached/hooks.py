"""Where packages extend kvcached: pluggy specifications, found by the entry-point group
``kvcached``."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from kvcached import _C

PROJECT = "kvcached"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

_log = logging.getLogger(PROJECT)


@dataclass(frozen=True)
class EngineInfo:
    """An engine that a package serves."""

    name: str
    installed: str | None
    """The installed version, or None."""
    supported: str
    """The range of versions that work, as people read it."""
    level: str
    """How well the installed version is known, as people read it: "verified on GPU", "verified on
    CPU", "contract only"; "refused" where the engine runs vanilla, "absent" where there is none."""


@dataclass(frozen=True)
class Event:
    """Something that happened to an engine's memory."""

    kind: str
    """"commit", "release", "denied", "pressure", "limit" or "died"."""
    engine: str
    extents: int = 0
    bytes: int = 0
    detail: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Specs:
    """The hooks. Every one may be left out."""

    @hookspec
    def kvcached_engine_info(self) -> EngineInfo:  # type: ignore[empty-body]
        """Describe the engine that this package serves."""

    @hookspec(firstresult=True)
    def kvcached_driver(self, device: str, ordinal: int) -> _C.Driver | None:
        """Return a driver for a device kind ("cpu", "cuda"), or None to leave it to others."""

    @hookspec(firstresult=True)
    def kvcached_policy(self) -> object | None:
        """Return the policy that decides which instance gives back first, or None."""

    @hookspec
    def kvcached_on_event(self, event: Event) -> None:
        """Hear of an event. Called outside hot paths; an exception is logged and ignored."""

    @hookspec
    def kvcached_cli(self, app: Any) -> None:
        """Add an engine's own commands to a typer application."""


@functools.cache
def manager() -> pluggy.PluginManager:
    """The process's plugin manager, with every installed plugin and the built-in drivers."""
    from kvcached import builtin_drivers

    made = pluggy.PluginManager(PROJECT)
    made.add_hookspecs(Specs)
    made.register(builtin_drivers, name="kvcached-drivers")
    for entry_point in entry_points(group=PROJECT):
        try:
            made.register(entry_point.load(), name=entry_point.name)
        except Exception:
            _log.exception("kvcached: plugin %s failed to load", entry_point.name)
    return made


def driver_for(device: str, ordinal: int = 0) -> _C.Driver:
    """A probed driver for a device kind. Raises ``_C.Error`` where there is none that works."""
    from kvcached import _C

    driver = manager().hook.kvcached_driver(device=device, ordinal=ordinal)
    if driver is None:
        raise _C.Error(f"no driver for devices of kind {device!r}")
    driver.probe()
    return driver  # type: ignore[no-any-return]


def has_listeners() -> bool:
    """Whether anybody wants to hear of events."""
    return bool(manager().hook.kvcached_on_event.get_hookimpls())


def emit(event: Event) -> None:
    """Tells every listener of an event. One that fails is logged; the others still hear."""
    made = manager()
    listeners = [found.plugin for found in made.hook.kvcached_on_event.get_hookimpls()]
    # Pluggy stops at the first failure, so each is called alone; last registered, first called.
    for listener in reversed(listeners):
        others = [plugin for plugin in listeners if plugin is not listener]
        try:
            made.subset_hook_caller("kvcached_on_event", others)(event=event)
        except Exception:
            _log.exception("kvcached: a listener failed on %s", event.kind)
