"""Ledgers and rows as metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from miniature import Cache, eventually

from kvcached import _C

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kvcached.telemetry import metric_table
from kvcached.telemetry.collector import LedgerCollector

GRANULE = 64 << 10
GIB = 1 << 30


def join(directory: Path, instance: str, group: str = "vllm", **terms: Any) -> _C.Lease:
    return _C.Lease.join(
        str(directory / "host.ledger"),
        "host",
        "host",
        GRANULE,
        GIB,
        2 * GIB,
        _C.LeaseTerms(group, instance, engine="vllm", **terms),
    )


def scrape(collector: LedgerCollector) -> dict[str, list[tuple[dict[str, str], float]]]:
    """What a scrape brings, through Prometheus' own text format: labels and value by name."""
    registry = CollectorRegistry()
    registry.register(collector)
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_a_lease_is_told_in_base_units_and_by_its_labels(shm_dir: Path) -> None:
    lease = join(shm_dir, "a-dp0", rank=3, weight=2.5, limit_bytes=100 << 20, virtual_bytes=GIB)
    assert lease.resize(64 << 20) == "granted"
    found = scrape(LedgerCollector(shm_dir))
    labels = {"device": "host", "group": "vllm", "engine_instance": "a-dp0", "rank": "3"}
    assert found["kvcached_lease_held_bytes"] == [(labels, 64 << 20)]
    assert found["kvcached_lease_weight"] == [(labels, 2.5)]
    assert found["kvcached_lease_limit_bytes"] == [(labels, 100 << 20)]
    assert found["kvcached_lease_virtual_bytes"] == [(labels, GIB)]
    assert found["kvcached_lease_alive"] == [(labels, 1)]
    assert found["kvcached_lease_grants_total"] == [(labels, 1)]
    ((info, one),) = found["kvcached_lease_info"]
    assert one == 1
    assert info.items() > labels.items()
    assert info["engine"] == "vllm"
    assert int(info["worker_pid"]) > 0


def test_a_lease_without_limit_has_none(shm_dir: Path) -> None:
    lease = join(shm_dir, "a-dp0")
    assert "kvcached_lease_limit_bytes" not in scrape(LedgerCollector(shm_dir))
    lease.leave()


def test_a_refusal_is_counted(shm_dir: Path) -> None:
    lease = join(shm_dir, "a-dp0", limit_bytes=1 << 20)
    assert lease.resize(2 << 20) == "over limit"
    ((_, denials),) = scrape(LedgerCollector(shm_dir))["kvcached_lease_denials_total"]
    assert denials == 1


def test_a_device_is_told_with_all_that_its_leases_hold(shm_dir: Path) -> None:
    leases = [join(shm_dir, "a-dp0"), join(shm_dir, "b-dp0")]
    for lease in leases:
        lease.resize(4 << 20)
    found = scrape(LedgerCollector(shm_dir))
    assert found["kvcached_device_used_bytes"] == [({"device": "host"}, 8 << 20)]
    assert found["kvcached_device_total_bytes"] == [({"device": "host"}, 2 * GIB)]
    assert found["kvcached_device_capacity_bytes"] == [({"device": "host"}, GIB)]
    assert len(found["kvcached_lease_held_bytes"]) == 2


def test_a_pagers_counters_come_from_the_leases_row(
    shm_dir: Path, open_cache: Callable[..., Cache]
) -> None:
    cache = open_cache()
    lease = join(shm_dir, "a-dp0", row=cache.path)
    pool = _C.Pool([cache.path])
    assert pool.ensure(20, 5.0)
    assert eventually(lambda: cache.row.describe()["commits"] >= 4)
    found = scrape(LedgerCollector(shm_dir))
    ((labels, commits),) = found["kvcached_pager_commits_total"]
    assert labels["engine_instance"] == "a-dp0"
    assert commits == cache.row.describe()["commits"]
    ((_, seconds),) = found["kvcached_pager_commit_seconds_total"]
    assert 0 < seconds < 10
    cache.close()
    # The lease may outlive its row for a moment; the rest is told all the same.
    found = scrape(LedgerCollector(shm_dir))
    assert "kvcached_pager_commits_total" not in found
    assert len(found["kvcached_lease_alive"]) == 1
    lease.leave()


def test_a_collector_of_one_engine_leaves_others_and_their_devices_out(shm_dir: Path) -> None:
    ours, theirs = join(shm_dir, "ours-dp0"), join(shm_dir, "theirs-dp0")
    elsewhere = _C.Lease.join(
        str(shm_dir / "GPU-1.ledger"),
        "GPU-1",
        "cuda",
        2 << 20,
        GIB,
        GIB,
        _C.LeaseTerms("vllm", "theirs-dp0"),
    )
    found = scrape(LedgerCollector(shm_dir, lambda lease: lease.instance == "ours-dp0"))
    assert [labels["engine_instance"] for labels, _ in found["kvcached_lease_alive"]] == [
        "ours-dp0"
    ]
    assert [labels["device"] for labels, _ in found["kvcached_device_used_bytes"]] == ["host"]
    for lease in (ours, theirs, elsewhere):
        lease.leave()


def test_namesakes_do_not_spoil_the_scrape(shm_dir: Path) -> None:
    first, second = join(shm_dir, "a-dp0"), join(shm_dir, "a-dp0")
    first.resize(1 << 20)
    second.resize(2 << 20)
    ((_, held),) = scrape(LedgerCollector(shm_dir))["kvcached_lease_held_bytes"]
    assert held == 2 << 20


def test_a_file_that_is_no_ledger_is_counted_and_named_once(
    shm_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (shm_dir / "odd.ledger").write_bytes(b"something else")
    lease = join(shm_dir, "a-dp0")
    collector = LedgerCollector(shm_dir)
    with caplog.at_level(logging.WARNING, "kvcached"):
        for _ in range(3):
            found = scrape(collector)
    assert found["kvcached_unreadable_ledgers"] == [({}, 1)]
    assert len(found["kvcached_lease_alive"]) == 1
    (line,) = caplog.messages
    assert str(shm_dir / "odd.ledger") in line
    lease.leave()


def test_a_directory_without_ledgers_is_no_error(shm_dir: Path) -> None:
    found = scrape(LedgerCollector(shm_dir / "not there"))
    assert found == {"kvcached_unreadable_ledgers": [({}, 0)]}


def test_names_follow_prometheus_conventions() -> None:
    for metric in (*metric_table.LEASE, *metric_table.PAGER, *metric_table.DEVICE):
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert metric.help.endswith("."), metric.name
        assert metric.name.startswith("kvcached_")


def test_the_table_is_what_is_collected(shm_dir: Path) -> None:
    described = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in LedgerCollector(shm_dir).describe()
    }
    table = (*metric_table.LEASE, *metric_table.PAGER, *metric_table.DEVICE)
    assert described == {
        metric_table.INFO,
        metric_table.UNREADABLE,
        *(metric.name for metric in table),
    }
