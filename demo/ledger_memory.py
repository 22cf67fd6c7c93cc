"""What kvcached's ledger says that an engine holds; for devices the kernel cannot see into."""

from __future__ import annotations

from pathlib import Path


class LedgerMeter:
    """Physical memory of one group of leases, as its workers account for it."""

    def __init__(self, directory: Path, group: str) -> None:
        self._directory = directory
        self._group = group

    def attached(self) -> bool:
        """Whether an engine of the group holds a lease: without one nothing is elastic."""
        return any(group == self._group for group, _ in self._leases())

    def read(self) -> int:
        return sum(backed for group, backed in self._leases() if group == self._group)

    def _leases(self) -> list[tuple[str, int]]:
        from kvcached import inventory

        devices, _ = inventory.devices(self._directory)
        return [(lease.group, lease.backed) for device in devices for lease in device.leases]
