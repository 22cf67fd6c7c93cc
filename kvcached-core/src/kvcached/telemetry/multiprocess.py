"""A collector's metrics for servers of several processes.

``prometheus_client`` serves those from files that ordinary metrics write, and asks no collector.
So one of the processes copies, and whichever is scraped shows the copy.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.registry import Collector
    from prometheus_client.samples import Sample

#: Seconds between copies. Scrapes are seldom closer than this.
INTERVAL = 1.0

_log = logging.getLogger("kvcached")

# Held while copying and over a fork, so that no child inherits a lock that nobody will release.
_copying = threading.Lock()
os.register_at_fork(
    before=_copying.acquire, after_in_parent=_copying.release, after_in_child=_copying.release
)


_Key = tuple[str, tuple[str, ...]]


class MultiprocessCopy:
    """Ordinary metrics that follow a collector's.

    To be made in one process alone: the counters of several are added up.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        # They are read from files; a registry of their own keeps them out of every other.
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._set: dict[_Key, Gauge] = {}
        self._counted: dict[_Key, float] = {}

    def update(self) -> None:
        """Copies once. A gauge that is no longer collected becomes NaN: files forget nothing."""
        gone = dict(self._set)
        for family in self._collector.collect():
            for sample in family.samples:
                key = (sample.name, tuple(sample.labels.values()))
                if family.type == "counter":
                    self._count(family, sample, key)
                else:
                    self._gauge(family, sample, key).set(sample.value)
                    gone.pop(key, None)
        for gauge in gone.values():
            gauge.set(math.nan)

    def start(self) -> None:
        """Copies from now on, in a thread that ends with the process."""
        threading.Thread(target=self._run, name="kvcached-metrics", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                with _copying:
                    self.update()
            except Exception:
                _log.exception("kvcached: copying metrics failed")
            time.sleep(INTERVAL)

    def _gauge(self, family: Metric, sample: Sample, key: _Key) -> Gauge:
        if key not in self._set:
            parent = self._gauges.get(sample.name) or Gauge(
                sample.name,
                family.documentation,
                list(sample.labels),
                registry=self._registry,
                multiprocess_mode="mostrecent",
            )
            self._gauges[sample.name] = parent
            self._set[key] = parent.labels(**sample.labels) if sample.labels else parent
        return self._set[key]

    def _count(self, family: Metric, sample: Sample, key: _Key) -> None:
        parent = self._counters.get(sample.name) or Counter(
            sample.name, family.documentation, list(sample.labels), registry=self._registry
        )
        self._counters[sample.name] = parent
        before = self._counted.get(key, 0.0)
        # A successor of the same name begins at zero.
        more = sample.value - before if sample.value >= before else sample.value
        (parent.labels(**sample.labels) if sample.labels else parent).inc(more)
        self._counted[key] = sample.value
