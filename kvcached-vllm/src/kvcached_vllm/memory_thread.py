"""Gives memory back while the engine sleeps: to neighbours at once, to the device soon after."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kvcached.policy import PolicyRunner
    from kvcached.telemetry.reporter import EventReporter
    from kvcached_vllm.supply import BlockSupply

_log = logging.getLogger("vllm.kvcached")

#: How long an engine without requests keeps its memory for the next one, in seconds. Short beside
#: the second within which an idle engine's memory has to be back; a burst that follows another
#: finds its memory where it was.
GRACE = 0.3
#: Between looks while pagers owe answers, in seconds.
_IN_FLIGHT = 0.002
#: Between two questions to a policy that a package provides, in seconds.
_POLICY = 0.05
#: Between looks while a busy engine has an order that waits for requests to end, in seconds.
_BUSY_ORDER = 0.1
#: For the thread to end, in seconds: a policy or a reporter of another package may be stuck.
_PATIENCE = 10.0
#: Between looks while nothing happens, in seconds. Whoever wants something rings.
_ASLEEP = 5.0


class Owner(Protocol):
    """A scheduler, as this thread sees it."""

    memory_lock: threading.RLock

    @property
    def idle(self) -> bool:
        """Whether there is no request at all."""


class MemoryThread(threading.Thread):
    """Sleeps on the bell of the engine's leases and answers under the scheduler's lock."""

    def __init__(
        self,
        owner: Owner,
        supply: BlockSupply,
        reporter: EventReporter | None = None,
        policy: PolicyRunner | None = None,
    ) -> None:
        """`policy`: who sets entitlements in place of the ledger's own policy."""
        super().__init__(name="kvcached-memory", daemon=True)
        # An engine that nobody refers to any more ends this thread with it.
        self._owner = weakref.ref(owner)
        self._supply = weakref.ref(supply)
        self._pool = supply.pool
        self._reporter = reporter
        self._policy = policy
        self._stopping = False
        self._idle_since: float | None = None
        self._became_idle = False
        # While Python takes itself down, a thread that comes back from native code is unwound
        # through it, which C++ answers with abort(). An engine that was not shut down, by an
        # exception for example, ends with the exception's status all the same.
        atexit.register(self.stop)

    def wake(self) -> None:
        """Tells that the engine has become idle."""
        self._became_idle = True
        self._pool.ring()

    def stop(self) -> None:
        """Ends the thread; returns when it has ended, or is stuck in somebody's plugin."""
        atexit.unregister(self.stop)
        self._stopping = True
        if not self.is_alive():  # in a forked child, too, which has no ledger to ring
            return
        self._pool.ring()
        self.join(_PATIENCE)
        if self.is_alive():
            _log.error("kvcached: the thread that answers neighbours does not end")

    def run(self) -> None:
        """Until stop(), or the engine's end."""
        timeout = _ASLEEP
        while not self._stopping:
            self._pool.wait_for_bell(timeout)
            owner, supply = self._owner(), self._supply()
            if owner is None or supply is None:
                atexit.unregister(self.stop)
                return
            with owner.memory_lock:
                try:
                    timeout = self._look(owner, supply)
                except Exception:
                    # The engine must not lose its only answer to neighbours.
                    _log.exception("kvcached: answering the ledger failed")
                    timeout = _ASLEEP
            busy = not owner.idle
            del owner, supply
            timeout = min(timeout, self._report(busy))

    def _report(self, busy: bool) -> float:
        """What needs no lock; returns the seconds until the next time."""
        try:
            if self._policy is not None:
                self._policy.apply()
            until = self._reporter.look() if self._reporter is not None else _ASLEEP
        except Exception:
            _log.exception("kvcached: reporting failed")
            return _ASLEEP
        if self._policy is not None:
            return _POLICY
        # An idle engine sleeps; what happens to it rings.
        return until if busy else _ASLEEP

    def _look(self, owner: Owner, supply: BlockSupply) -> float:
        """Does what is due; returns the seconds until the next look."""
        pool = self._pool
        now = time.monotonic()
        if not owner.idle:
            self._idle_since = None
        elif self._idle_since is None or self._became_idle:
            # A whole busy time may have passed without a look.
            self._idle_since = now
        self._became_idle = False
        waited = now - self._idle_since if self._idle_since is not None else 0.0
        settled = self._idle_since is not None and waited >= GRACE
        ordered = pool.has_orders  # before the answer, so that a later order is not taken for done
        if settled or ordered or pool.in_flight or any(pool.pressure):
            supply.tidy(idle=settled)
        in_flight = pool.in_flight
        # An idle engine has given what it can; a busy one gives as its requests end.
        if ordered and not in_flight and (owner.idle or not any(pool.pressure)):
            pool.orders_done()
            ordered = False
        if in_flight and (owner.idle or ordered):
            return _IN_FLIGHT
        if ordered:
            return _BUSY_ORDER  # the steps themselves give back; this only sees that it is done
        if self._idle_since is not None and not settled:
            return max(_IN_FLIGHT, GRACE - waited)
        return _ASLEEP
