"""An elastic KV cache for vLLM, through its platform and general plugin entry points.

This module runs in every process that vLLM starts, before vLLM knows its platform. It imports
the standard library alone.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from multiprocessing import current_process

__version__ = "0.1.0"

SCHEDULER = "kvcached_vllm.scheduler.ElasticScheduler"
CPU_WORKER = "kvcached_vllm.cpu_worker.ElasticCPUWorker"

_PLATFORM = "kvcached_vllm.elastic_platform.ElasticPlatform"
_TRUE = {"true", "1", "yes", "on", "t", "y"}
_FALSE = {"false", "0", "no", "off", "f", "n"}

# Below vLLM's logger, so that its format and its level apply.
_log = logging.getLogger("vllm.kvcached")
_said: set[str] = set()


class NotElastic(RuntimeError):
    """The engine cannot be elastic, and the user demanded it or made a mistake."""


def say_once(line: str, level: int = logging.WARNING) -> None:
    """Logs a line, once a process, and not in workers: the engine has said it."""
    if line not in _said and not current_process().name.startswith("VllmWorker"):
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


def installed_vllm() -> str:
    """vLLM's version, asked of vLLM itself: its CPU build is another distribution."""
    from vllm.version import __version__ as version

    return str(version)


def _other_platform() -> str | None:
    """The name of another platform plugin that would be active, or None."""
    allowed = os.environ.get("VLLM_PLUGINS")
    names = None if allowed is None else allowed.split(",")
    for plugin in entry_points(group="vllm.platform_plugins"):
        if plugin.name == "kvcached" or (names is not None and plugin.name not in names):
            continue
        try:
            if plugin.load()() is not None:
                return plugin.name
        except Exception as error:  # vLLM ignores a plugin that fails, and so do we
            _log.debug("kvcached: platform plugin %s failed: %s", plugin.name, error)
    return None


def peer_installed() -> str | None:
    """What to do where another project's distribution is in this environment, or None.

    It is named ``kvcached``, has our import name, reads our variables and patches vLLM through a
    ``.pth`` file: whichever was installed last has overwritten the other's files.
    """
    try:
        version = distribution("kvcached").version
    except PackageNotFoundError:
        return None
    return (
        f"the distribution 'kvcached' {version} is installed beside kvcached-core, with the same "
        "import name; run: pip uninstall -y kvcached && pip install --force-reinstall --no-deps "
        "kvcached-core kvcached-vllm"
    )


def early_reason() -> str | None:
    """Why this process cannot be elastic whatever its configuration, or None."""
    from kvcached_vllm import versions

    if (reason := versions.reason(installed_vllm())) is not None:
        return reason
    if (other := _other_platform()) is not None:
        return f"the platform plugin {other!r} is active, and vLLM takes one"
    return None


def platform() -> str | None:
    """vLLM's platform plugin: the elastic platform's name, or None for vanilla."""
    try:
        if not enabled() or peer_installed() is not None:
            return None
        reason = early_reason()
    except NotElastic:
        return None  # register() says so, where vLLM does not swallow it
    if reason is not None:
        say_once(f"kvcached: vanilla: {reason}")
        return None
    return _PLATFORM


def _asked_for_by_name() -> bool:
    return any("kvcached_vllm" in argument for argument in sys.argv)


def register() -> None:
    """vLLM's general plugin: says what the platform plugin cannot. Raises NotElastic where the
    environment does not parse, or demands what cannot be had."""
    if not enabled():
        if required():
            raise NotElastic("kvcached: KVCACHED_REQUIRED=true, but ENABLE_KVCACHED=false")
        say_once("kvcached: vanilla: ENABLE_KVCACHED=false", logging.INFO)
        return
    if (peer := peer_installed()) is not None:
        raise NotElastic(f"kvcached: {peer}")
    reason = early_reason()
    if reason is None and os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        # vLLM 0.29 and later look at no platform plugin then.
        if _asked_for_by_name():
            return
        reason = (
            "VLLM_TARGET_DEVICE=cpu makes vLLM skip platform plugins; unset it, or pass "
            f"--scheduler-cls {SCHEDULER} --worker-cls {CPU_WORKER}"
        )
    if reason is None:
        return
    if required():
        raise NotElastic(f"kvcached: KVCACHED_REQUIRED=true, but: {reason}")
    say_once(f"kvcached: vanilla: {reason}")
