"""What kvctl and the documentation learn of this package."""

from __future__ import annotations

from kvcached.compatibility import best
from kvcached.hooks import EngineInfo, hookimpl
from kvcached_sglang import installed_sglang, versions


@hookimpl
def kvcached_engine_info() -> EngineInfo:
    """SGLang, and whether the installed one is served."""
    installed = installed_sglang()
    if installed is None:
        return EngineInfo("sglang", None, versions.served_range(), "absent")
    level = best(versions.level(installed, device) for device in ("cpu", "cuda"))
    return EngineInfo("sglang", installed, versions.served_range(), level)
