"""Ledgers and rows as Prometheus metrics, read when somebody scrapes.

Needs ``prometheus_client``. Nothing runs between scrapes, and engines do nothing for them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from kvcached import _C, inventory
from kvcached.telemetry.metric_table import (
    DEVICE,
    DEVICE_LABELS,
    INFO,
    INFO_HELP,
    INFO_LABELS,
    LEASE,
    LEASE_LABELS,
    PAGER,
    UNREADABLE,
    UNREADABLE_HELP,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from prometheus_client import Metric

    from kvcached._C import RowDescription
    from kvcached.inventory import Device, LeaseView, Problem
    from kvcached.telemetry import metric_table

_log = logging.getLogger("kvcached")


class LedgerCollector(Collector):
    """All devices, leases and pagers of a directory, or only those that `wanted` accepts.

    With `wanted`, devices on which it accepts no lease are left out as well. `directory` is
    shm.directory()'s; it may be empty, and ledgers may come and go.
    """

    def __init__(self, directory: Path, wanted: Callable[[LeaseView], bool] | None = None) -> None:
        self._directory = directory
        self._wanted = wanted
        self._complained: set[str] = set()

    def describe(self) -> Iterable[Metric]:
        """The metrics without samples; a registry checks its names by them."""
        return _Families().all()

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        families = _Families()
        devices, problems = inventory.devices(self._directory)
        for device in devices:
            leases = self._leases_of(device)
            if leases or self._wanted is None:
                families.add_device(device)
            for lease in leases:
                families.add_lease(lease)
        families.add_unreadable(len(problems))
        self._complain(problems)
        return families.all()

    def _leases_of(self, device: Device) -> list[LeaseView]:
        # One lease for one set of labels, or the whole scrape is refused: the youngest, and not a
        # dead namesake that nobody has swept yet.
        found: dict[tuple[str, str, int], LeaseView] = {}
        for lease in sorted(device.leases, key=lambda one: (one.alive, -one.joined_seconds_ago)):
            if self._wanted is None or self._wanted(lease):
                found[lease.group, lease.instance, lease.rank] = lease
        return list(found.values())

    def _complain(self, problems: list[Problem]) -> None:
        for problem in problems:
            if problem.path not in self._complained:
                self._complained.add(problem.path)
                _log.warning("kvcached: metrics leave out %s: %s", problem.path, problem.reason)


class _Families:
    """The metric families of one scrape, while they are filled."""

    def __init__(self) -> None:
        self._info = GaugeMetricFamily(INFO, INFO_HELP, labels=INFO_LABELS)
        self._unreadable = GaugeMetricFamily(UNREADABLE, UNREADABLE_HELP)
        self._lease = [(metric, _family(metric, LEASE_LABELS)) for metric in LEASE]
        self._pager = [(metric, _family(metric, LEASE_LABELS)) for metric in PAGER]
        self._device = [(metric, _family(metric, DEVICE_LABELS)) for metric in DEVICE]

    def all(self) -> Iterator[Metric]:
        """Every family, in the order of the table."""
        for _, device in self._device:
            yield device
        yield self._info
        for _, lease in self._lease:
            yield lease
        for _, pager in self._pager:
            yield pager
        yield self._unreadable

    def add_device(self, device: Device) -> None:
        for metric, family in self._device:
            _add(family, [device.id], metric.read(device))

    def add_lease(self, lease: LeaseView) -> None:
        who = [lease.device, lease.group, lease.instance]
        rank = str(lease.rank)
        self._info.add_metric([*who, lease.engine, rank, str(lease.pid)], 1)
        for metric, family in self._lease:
            _add(family, [*who, rank], metric.read(lease))
        row = _row_of(lease)
        if row is not None:
            for pager_metric, family in self._pager:
                _add(family, [*who, rank], pager_metric.read(row))

    def add_unreadable(self, count: int) -> None:
        self._unreadable.add_metric([], count)


_Family = CounterMetricFamily | GaugeMetricFamily


def _family(metric: metric_table.Metric[Any], labels: tuple[str, ...]) -> _Family:
    made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return made(metric.name, metric.help, labels=labels)


def _add(family: _Family, labels: list[str], value: float | None) -> None:
    if value is not None:
        family.add_metric(labels, float(value))


def _row_of(lease: LeaseView) -> RowDescription | None:
    if not lease.row:
        return None
    try:
        return _C.Row.attach(lease.row).describe()
    except _C.Error:  # its owner died, or has not published it yet
        return None
