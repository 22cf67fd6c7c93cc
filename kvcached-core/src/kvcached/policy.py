"""A policy from outside: who is entitled to how much of a device.

The built-in policy is native (``native/src/ledger/policy.cpp``). A package replaces it through the
``kvcached_policy`` hook with an object like `Policy`; every engine on a device should have the
same.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from kvcached import _C, hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvcached._C import LedgerDescription

_log = logging.getLogger("kvcached")


class Policy(Protocol):
    """What ``kvcached_policy`` returns."""

    @property
    def name(self) -> str:
        """What the ledger calls it; at most 63 characters."""

    def entitlements(self, device: LedgerDescription) -> Mapping[int, int]:
        """Bytes that each lease is entitled to, by slot. Their sum should not exceed the device's
        capacity; leases that are left out are entitled to nothing."""


class PolicyRunner:
    """Keeps the entitlements of some ledgers as a policy wants them."""

    def __init__(self, ledgers: list[_C.Ledger], policy: Policy) -> None:
        self._ledgers = ledgers
        self._policy = policy
        for ledger in ledgers:
            in_force = ledger.describe()["policy"]
            if in_force not in ("", policy.name):
                _log.warning(
                    "kvcached: %s: the policy %r replaces %r; install the same on every engine of "
                    "a device",
                    ledger.path,
                    policy.name,
                    in_force,
                )
        self.apply()
        for ledger in ledgers:
            ledger.set_policy(policy.name)

    @classmethod
    def installed(cls, paths: list[str]) -> PolicyRunner | None:
        """A runner of the policy that a package provides, or None: the built-in one is in force."""
        policy = hooks.manager().hook.kvcached_policy()
        if policy is None:
            return None
        return cls([_C.Ledger.open(path) for path in sorted(set(paths))], policy)

    def apply(self) -> None:
        """Asks the policy and writes what it says."""
        for ledger in self._ledgers:
            device = ledger.describe()
            wanted = self._policy.entitlements(device)
            for lease in device["leases"]:
                ledger.set_entitlement(lease["slot"], max(0, int(wanted.get(lease["slot"], 0))))
