"""What kvctl and the documentation learn of this package."""

from __future__ import annotations

from kvcached.hooks import EngineInfo, hookimpl
from kvcached_vllm import installed_vllm, supported_range, version_reason


@hookimpl
def kvcached_engine_info() -> EngineInfo:
    """vLLM, and whether the installed one is served."""
    try:
        installed = installed_vllm()
    except ImportError:
        return EngineInfo("vllm", None, supported_range(), "absent")
    level = "refused" if version_reason(installed) else "verified"
    return EngineInfo("vllm", installed, supported_range(), level)
