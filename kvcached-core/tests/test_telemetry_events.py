"""Events between looks at real rows and ledgers, and their log."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from miniature import BLOCK_BYTES, BLOCKS_PER_EXTENT, Cache, eventually

from kvcached import _C, hooks, settings
from kvcached.hooks import Event
from kvcached.telemetry.event_log import LOGGER, EventLog
from kvcached.telemetry.events import EventSource

GRANULE = 64 << 10
MIB = 1 << 20
EXTENT = BLOCKS_PER_EXTENT * BLOCK_BYTES

HOLDER = """
import sys
from kvcached import _C
terms = _C.LeaseTerms("others", "other", engine="test")
lease = _C.Lease.join(sys.argv[1], "host", "host", 65536, 64 << 20, 1 << 30, terms)
print(lease.resize(int(sys.argv[2])), flush=True)
sys.stdin.read()
"""


class Engine:
    """A lease, and what its scheduler would look at."""

    def __init__(self, directory: Path, **terms: Any) -> None:
        self.path = str(directory / "host.ledger")
        self.lease = _C.Lease.join(
            self.path,
            "host",
            "host",
            GRANULE,
            64 * MIB,
            1 << 30,
            _C.LeaseTerms("vllm", "a-dp0", engine="vllm", **terms),
        )
        self.ledger = _C.Ledger.open(self.path)
        self.source = EventSource("vllm", "a-dp0")

    def look(self, *rows: _C.Row) -> list[Event]:
        return self.source.compare([row.describe() for row in rows], [self.ledger.describe()])


def test_the_first_look_and_looks_at_nothing_new_bring_no_events(shm_dir: Path) -> None:
    engine = Engine(shm_dir)
    assert engine.look() == []
    assert engine.look() == []


def test_commits_and_releases_are_told_with_their_bytes(
    shm_dir: Path, open_cache: Callable[..., Cache]
) -> None:
    cache = open_cache()
    engine = Engine(shm_dir, row=cache.path)
    engine.look(cache.row)
    pool = _C.Pool([cache.path], 0, 0)
    before = cache.row.describe()["commits"]
    assert pool.ensure(20, 5.0)
    (event,) = engine.look(cache.row)
    extents = cache.row.describe()["commits"] - before
    assert (event.kind, event.engine) == ("commit", "vllm/a-dp0")
    assert (event.extents, event.bytes) == (extents, extents * EXTENT)
    assert event.facts["seconds"] > 0
    pool.begin_step(1)
    pool.processed(1)
    cache.pager.launched(1)
    pool.balance(True)

    def released() -> bool:
        pool.balance(True)
        return cache.row.describe()["releases"] > 0

    assert eventually(released)
    (event,) = engine.look(cache.row)
    assert event.kind == "release"
    assert event.bytes == event.extents * EXTENT > 0


@pytest.mark.parametrize(
    ("terms", "asked", "why"),
    [
        ({}, 0, "the driver refused"),
        ({"limit_bytes": MIB}, 2 * MIB, "the limit is reached"),
        ({"device_limit_bytes": MIB}, 2 * MIB, "device host is full"),
    ],
)
def test_a_denial_says_who_refused(
    shm_dir: Path, terms: dict[str, int], asked: int, why: str
) -> None:
    driver = _C.host_driver(4 * EXTENT)
    driver.probe()
    blocks = 64
    spans = [(0, 0, BLOCK_BYTES, BLOCK_BYTES)]
    geometry = _C.Geometry(blocks, [blocks * BLOCK_BYTES], spans, BLOCKS_PER_EXTENT)
    row_path = str(shm_dir / "a.0.row")
    pager = _C.Pager(driver, geometry, row_path)
    pager.start()
    row = _C.Row.attach(row_path)
    engine = Engine(shm_dir, row=row_path, extent_bytes=EXTENT, **terms)
    engine.lease.resize(MIB)
    engine.look(row)
    # The pager is bounded by its driver; what its lease says is asked beside it.
    assert not _C.Pool([row_path]).ensure(40, 0.5)
    if asked:
        assert engine.lease.resize(asked) != "granted"
    assert eventually(lambda: row.describe()["denials"] > 0)
    denied = next(event for event in engine.look(row) if event.kind == "denied")
    pager.stop()
    assert denied.bytes == denied.extents * EXTENT > 0
    assert denied.detail == denied.facts["why"] == why


def test_a_changed_limit_is_told_from_and_to(shm_dir: Path) -> None:
    engine = Engine(shm_dir, limit_bytes=32 * MIB)
    engine.look()
    engine.ledger.set_limit(engine.lease.slot, 16 * MIB)
    engine.ledger.set_weight(engine.lease.slot, 2.0)
    engine.ledger.set_floor(engine.lease.slot, MIB)
    changes = {
        event.facts["what"]: (event.facts["was"], event.facts["now"]) for event in engine.look()
    }
    assert changes["limit"] == (32 * MIB, 16 * MIB)
    assert changes["weight"] == (1.0, 2.0)
    assert changes["floor"][1] == MIB
    assert len(changes) == 3


def test_a_neighbour_that_is_killed_is_told_with_what_it_gave_back(shm_dir: Path) -> None:
    engine = Engine(shm_dir)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, engine.path, str(8 * MIB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "granted\n"
        engine.look()
        other.kill()
        other.wait()
    assert engine.look() == []  # nobody has noticed yet
    engine.ledger.sweep()
    (event,) = engine.look()
    assert (event.kind, event.bytes) == ("died", 8 * MIB)
    assert event.facts["who"] == ["others/other"]
    assert event.facts["device"] == "host"
    assert event.facts["certain"]


def test_pressure_begins_and_ends(shm_dir: Path) -> None:
    engine = Engine(shm_dir)
    # Nobody minds what it holds, until somebody's floor is not met.
    assert engine.lease.resize(64 * MIB) == "granted"
    engine.look()
    terms = _C.LeaseTerms("others", "other", floor_bytes=16 * MIB)
    other = _C.Lease.join(engine.path, "host", "host", GRANULE, 64 * MIB, 1 << 30, terms)
    assert other.resize(16 * MIB) != "granted"
    kinds = {event.kind: event for event in engine.look()}
    assert kinds["pressure"].facts["state"] == "began"
    assert kinds["pressure"].bytes > 0
    engine.lease.resize(16 * MIB)
    assert other.resize(16 * MIB) == "granted"
    kinds = {event.kind: event for event in engine.look()}
    assert kinds["pressure"].facts["state"] == "ended"
    assert kinds["pressure"].facts["seconds"] >= 0


@pytest.fixture
def log(clean_environment: pytest.MonkeyPatch) -> Iterator[Callable[..., EventLog]]:
    """Makes the plugin from variables; takes its logger back to what it was."""
    logger = logging.getLogger(LOGGER)
    before = (logger.level, logger.handlers[:])
    made: list[EventLog] = []

    def make(**variables: str) -> EventLog:
        for name, value in variables.items():
            clean_environment.setenv(name, value)
        made.append(EventLog(settings.load()))
        hooks.manager().register(made[-1])
        return made[-1]

    yield make
    for plugin in made:
        hooks.manager().unregister(plugin)
    logger.setLevel(before[0])
    logger.handlers[:] = before[1]


def test_commits_are_logged_at_debug_and_limits_at_info(
    log: Callable[..., EventLog], caplog: pytest.LogCaptureFixture
) -> None:
    log()
    changed = Event("limit", "vllm/a", facts={"what": "limit", "was": None, "now": 3 << 30})
    hooks.emit(Event("commit", "vllm/a", extents=2, bytes=4 * MIB))
    hooks.emit(changed)
    assert caplog.messages == ["kvcached: vllm/a: limit none is now 3.0 GiB"]
    log(KVCACHED_LOG_LEVEL="DEBUG")
    caplog.clear()
    hooks.emit(Event("commit", "vllm/a", extents=2, bytes=4 * MIB))
    assert "kvcached: vllm/a: committed 2 extents (4.0 MiB)" in caplog.messages


def test_denials_are_limited_and_the_next_line_says_how_many_were_left_out(
    log: Callable[..., EventLog], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("kvcached.telemetry.event_log.time.monotonic", lambda: now[0])
    log()
    for _ in range(5):
        hooks.emit(Event("denied", "vllm/a", extents=1, bytes=MIB, detail="device host is full"))
    hooks.emit(Event("denied", "vllm/b", extents=1, bytes=MIB, detail="device host is full"))
    now[0] += 11
    hooks.emit(Event("denied", "vllm/a", extents=1, bytes=MIB, detail="device host is full"))
    line = "denied 1 extents (1.0 MiB): device host is full"
    assert caplog.messages == [
        f"kvcached: vllm/a: {line}",
        f"kvcached: vllm/b: {line}",
        f"kvcached: vllm/a: {line} (4 more left out since the last such line)",
    ]


def test_as_json_every_line_parses(
    log: Callable[..., EventLog], caplog: pytest.LogCaptureFixture
) -> None:
    log(KVCACHED_LOG_FORMAT="json")
    facts = {"device": "host", "who": ["others/b"], "certain": True}
    hooks.emit(Event("died", "vllm/a", bytes=MIB, detail="its memory was given back", facts=facts))
    (line,) = map(json.loads, caplog.messages)
    assert line.pop("time") > 1e9
    assert line == {
        "event": "died",
        "engine": "vllm/a",
        "bytes": MIB,
        "detail": "its memory was given back",
        **facts,
    }


def test_without_anybodys_logging_lines_go_to_stderr() -> None:
    script = (
        "from kvcached import settings\n"
        "from kvcached.hooks import Event\n"
        "from kvcached.telemetry.event_log import EventLog\n"
        "EventLog(settings.load()).kvcached_on_event(Event('died', 'vllm/a'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr.endswith(
        "[kvcached.events] kvcached: vllm/a: a neighbour on the device died\n"
    )
