"""What kvctl and the documentation learn of this package."""

from __future__ import annotations

from kvcached.hooks import EngineInfo, hookimpl
from kvcached_sglang import (
    VERIFIED_SGLANG,
    installed_sglang,
    needs_launcher,
    supported_range,
    version_reason,
)


@hookimpl
def kvcached_engine_info() -> EngineInfo:
    """SGLang, and whether the installed one is served."""
    installed = installed_sglang()
    if installed is None:
        return EngineInfo("sglang", None, supported_range(), "absent")
    if version_reason(installed) is not None and not needs_launcher(installed):
        level = "refused"
    else:
        level = "verified" if installed in VERIFIED_SGLANG else "contract"
    return EngineInfo("sglang", installed, supported_range(), level)
