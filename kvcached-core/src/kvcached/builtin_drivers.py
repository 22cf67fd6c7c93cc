"""The drivers that come with kvcached, as a plugin."""

from __future__ import annotations

from kvcached import _C
from kvcached.hooks import hookimpl


@hookimpl(trylast=True)
def kvcached_driver(device: str, ordinal: int) -> _C.Driver | None:
    """CUDA devices and this machine's memory."""
    if device == "cuda":
        return _C.cuda_driver(ordinal)
    if device == "cpu":
        return _C.host_driver()
    return None
