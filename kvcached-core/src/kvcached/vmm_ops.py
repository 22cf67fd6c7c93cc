"""Whether virtual-memory management works on this machine."""

from __future__ import annotations

from kvcached import _C


def is_available(device: str = "") -> bool:
    """Whether a driver for `device` ("cuda", "host"; empty: any) works here."""
    return bool(available_drivers(device))


def available_drivers(device: str = "") -> list[str]:
    """The names of the drivers that work here, best first."""
    candidates = {"cuda": _C.cuda_driver, "host": _C.host_driver}
    found = []
    for name, make in candidates.items():
        if device in ("", name):
            try:
                make().probe()
            except _C.Error:
                continue
            found.append(name)
    return found
