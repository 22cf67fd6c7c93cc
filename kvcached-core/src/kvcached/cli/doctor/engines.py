"""Whether engines find us, and may be served."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from kvcached import hooks
from kvcached.cli.doctor.finding import Finding, fail, ok, warn
from kvcached.cli.doctor.installation import installed, reinstall

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ENTRY = "kvcached"


@dataclass(frozen=True)
class _Way:
    """How an engine finds plugins."""

    package: str
    groups: tuple[str, ...]
    filter: str
    """The variable that names the plugins to load, all where it is unset."""


_WAYS = (
    _Way("kvcached-vllm", ("vllm.platform_plugins", "vllm.general_plugins"), "VLLM_PLUGINS"),
    _Way("kvcached-sglang", ("sglang.srt.plugins",), "SGLANG_PLUGINS"),
)


def check(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Entry points, the variables that filter them, and the engines themselves."""
    ours = installed()
    ways = [way for way in _WAYS if way.package in ours]
    if not ways:
        yield warn("plugins", "no engine's package is installed", "pip install kvcached-vllm")
    for way in ways:
        for group in way.groups:
            yield _entry_point(way, group)
        allowed = environment.get(way.filter)
        if allowed is not None and _ENTRY not in [name.strip() for name in allowed.split(",")]:
            yield fail(
                "plugins",
                f"{way.filter}={allowed} keeps kvcached out",
                f"unset {way.filter}, or add kvcached: {way.filter}="
                f"{','.join(filter(None, (allowed, _ENTRY)))}",
            )
    yield from _extensions()
    yield from _engines()


def _entry_point(way: _Way, group: str) -> Finding:
    found = list(entry_points(group=group, name=_ENTRY))
    advice = reinstall(installed())
    if not found:
        return fail("plugins", f"{way.package} has no entry point in {group}", advice)
    try:
        found[0].load()
    except Exception as error:
        return fail("plugins", f"{group}: {found[0].value} does not load: {error!r}", advice)
    return ok("plugins", f"{group}: {found[0].value}")


def _extensions() -> Iterator[Finding]:
    for found in entry_points(group=hooks.PROJECT):
        try:
            found.load()
        except Exception as error:
            yield fail(
                "plugins",
                f"kvcached: {found.name} ({found.value}) does not load: {error!r}",
                "reinstall or uninstall its package",
            )
        else:
            yield ok("plugins", f"kvcached: {found.name} ({found.value})")


def _engines() -> Iterator[Finding]:
    try:
        engines = hooks.manager().hook.kvcached_engine_info()
    except Exception as error:
        yield fail("engines", f"a package cannot tell of its engine: {error!r}", "reinstall it")
        return
    for engine in engines:
        if engine.installed is None:
            yield warn(
                "engines",
                f"{engine.name} is not installed here (works with {engine.supported})",
                "run kvctl doctor in the engine's environment",
            )
        elif engine.level == "refused":
            yield fail(
                "engines",
                f"{engine.name} {engine.installed} is not supported and runs vanilla",
                f"install {engine.name} {engine.supported}",
            )
        else:
            yield ok("engines", f"{engine.name} {engine.installed} ({engine.level})")
