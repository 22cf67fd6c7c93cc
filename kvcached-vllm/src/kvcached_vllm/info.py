"""What kvctl and the documentation learn of this package."""

from __future__ import annotations

from kvcached.compatibility import REFUSED, best
from kvcached.hooks import EngineInfo, hookimpl
from kvcached_vllm import installed_vllm, versions


@hookimpl
def kvcached_engine_info() -> EngineInfo:
    """vLLM, and whether the installed one is served."""
    try:
        installed = installed_vllm()
    except ImportError:
        return EngineInfo("vllm", None, versions.served_range(), "absent")
    if versions.reason(installed) is not None:
        return EngineInfo("vllm", installed, versions.served_range(), REFUSED)
    level = best(versions.level(installed, device) for device in ("cpu", "cuda"))
    return EngineInfo("vllm", installed, versions.served_range(), level)
