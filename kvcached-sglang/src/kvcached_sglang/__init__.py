"""An elastic KV cache for SGLang, through its entry point for general plugins.

SGLang calls register() in its launcher, in every scheduler and, from 0.5.23 on, in some other
processes. This module imports the standard library alone; hooks are registered only where the
scheduler's code is loaded.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec

__version__ = "0.1.0"

_SCHEDULER = "sglang.srt.managers.scheduler"
_TRUE = {"true", "1", "yes", "on", "t", "y"}
_FALSE = {"false", "0", "no", "off", "f", "n"}

# Below SGLang's logger, so that its format and its level apply.
_log = logging.getLogger("sglang.kvcached")
_said: set[str] = set()


class NotElastic(RuntimeError):
    """The engine cannot be elastic, and the user demanded it or made a mistake."""


def say_once(line: str, level: int = logging.WARNING) -> None:
    """Logs a line, once a process."""
    if line not in _said:
        _said.add(line)
        _log.log(level, line)


def _flag(name: str, default: bool) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if not value:
        return default
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise NotElastic(f"kvcached: {name}={os.environ[name]}: allowed is true or false")


def enabled() -> bool:
    """Whether ENABLE_KVCACHED leaves us on. Raises NotElastic where it does not parse."""
    return _flag("ENABLE_KVCACHED", True)


def required() -> bool:
    """Whether KVCACHED_REQUIRED forbids vanilla. Raises NotElastic where it does not parse."""
    return _flag("KVCACHED_REQUIRED", False)


def installed_sglang() -> str | None:
    """SGLang's version, or None where it is not installed."""
    try:
        return version("sglang")
    except PackageNotFoundError:
        return None


def peer_installed() -> str | None:
    """What to do where another project's distribution is in this environment, or None.

    It is named ``kvcached``, has our import name, reads our variables and patches SGLang through
    a ``.pth`` file: whichever was installed last has overwritten the other's files.
    """
    try:
        found = distribution("kvcached").version
    except PackageNotFoundError:
        return None
    return (
        f"the distribution 'kvcached' {found} is installed beside kvcached-core, with the same "
        "import name; run: pip uninstall -y kvcached && pip install --force-reinstall --no-deps "
        "kvcached-core kvcached-sglang"
    )


def _schedules() -> bool:
    # Launchers and schedulers; a detokenizer would load gigabytes of code for our hooks' sake.
    return _SCHEDULER in sys.modules


def _has_scheduler() -> bool:
    try:
        return find_spec(_SCHEDULER) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def contract_reason(launched: bool) -> str | None:
    """Why the installed SGLang, whose scheduler is loaded, is not served on this machine's device,
    or None: with a line where nobody ran it here. `launched`: whether by our launcher."""
    import torch

    from kvcached_sglang import contract, versions

    installed = installed_sglang() or ""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if (reason := versions.device_reason(installed, device)) is not None:
        return reason
    if versions.was_run(installed, device):
        return None
    if broken := contract.broken(launched):
        return versions.broken_reason(installed, broken)
    say_once(f"kvcached: {versions.caution(installed, device, len(contract.seams(launched)))}")
    return None


def register() -> None:
    """SGLang's general plugin. SGLang only logs what a plugin raises, so that whatever must stop
    the engine leaves as SystemExit."""
    try:
        reason = _attach()
    except NotElastic as error:
        raise SystemExit(str(error)) from None
    if reason is None:
        return
    if required():
        raise SystemExit(f"kvcached: KVCACHED_REQUIRED=true, but: {reason}")
    say_once(f"kvcached: vanilla: {reason}")


def _attach() -> str | None:
    """Registers the hooks; returns why not, or None."""
    if not enabled():
        if required():
            raise NotElastic("kvcached: KVCACHED_REQUIRED=true, but ENABLE_KVCACHED=false")
        say_once("kvcached: vanilla: ENABLE_KVCACHED=false", logging.INFO)
        return None
    required()  # so that it is refused here where it does not parse
    if (peer := peer_installed()) is not None:
        raise NotElastic(f"kvcached: {peer}")
    installed = installed_sglang()
    if installed is None:
        return "the installed SGLang does not tell its version"
    from kvcached_sglang import versions

    if (reason := versions.reason(installed)) is not None:
        return reason
    if not versions.recorded(installed) and not _has_scheduler():
        return versions.broken_reason(installed, [f"a scheduler: no module {_SCHEDULER}"])
    if not _schedules():
        return None
    if (reason := contract_reason(launched=False)) is not None:
        return reason
    from kvcached_sglang import attachment

    return attachment.attach()
