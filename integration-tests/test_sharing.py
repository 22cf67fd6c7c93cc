"""Three servers on one budget that none of them could share with another by halves."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import elasticity
from ledger_watch import LedgerWatch, Moment
from scenarios.prompts import prompt
from server import Server

MIB = 1 << 20
#: Room for one server's load and a little: two loads side by side would need 150 MiB.
CAPACITY = 112 * MIB
PROMPTS = 12
GROUPS = ("one", "two", "three")


@dataclass
class Results:
    """What happened, for the tests to look at."""

    tokens: dict[str, list[list[int]]] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    denials: dict[str, int] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    limit_answered: bool = False
    held_under_limit: int = 0
    tokens_after_limit: list[list[int]] = field(default_factory=list)
    seconds_until_dead_is_gone: float = 0.0
    exits: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)


def _load(server: Server) -> list[list[int]]:
    prompts = [prompt(f"load-{number}", 1500) for number in range(PROMPTS)]
    with ThreadPoolExecutor(PROMPTS) as clients:
        return list(clients.map(server.complete, prompts, [96] * PROMPTS))


def _exercise(servers: Mapping[str, Server], watch: LedgerWatch) -> Results:
    results = Results()
    one, two, three = (servers[name] for name in GROUPS)
    results.tokens["one"] = _load(one)
    results.held["one, idle"] = watch.held("one")
    # What two needs lies in one's cached prefixes.
    results.tokens["two"] = _load(two)
    results.held["one, after two"] = watch.held("one")
    results.held["two, idle"] = watch.held("two")

    lease = watch.lease("two")
    assert lease is not None
    order = watch.ledger.set_limit(lease["slot"], 24 * MIB)
    results.limit_answered = watch.ledger.wait_done(lease["slot"], order, 2.0)
    results.held_under_limit = watch.held("two")
    watch.ledger.set_limit(lease["slot"], lease["limit_bytes"] or 0)
    results.tokens_after_limit = _load(two)

    results.tokens["three"] = _load(three)
    results.held["three, before death"] = watch.held("three")
    os.killpg(three.process.pid, signal.SIGKILL)
    results.seconds_until_dead_is_gone = watch.wait_until_gone("three", 5.0)
    for name in GROUPS:
        lease = watch.lease(name)
        results.denials[name] = lease["denials"] if lease is not None else 0
    for name in ("one", "two"):
        results.exits[name] = servers[name].stop()
    return results


@pytest.fixture(scope="module")
def results(
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    new_shm_dir: Callable[[], Path],
) -> Results:
    folder, logs = new_shm_dir(), tmp_path_factory.mktemp("sharing")
    servers = {}
    with contextlib.ExitStack() as stack:
        # In the same second, as a node that boots starts them.
        for name in GROUPS:
            settings = elasticity.elastic(
                folder,
                KVCACHED_IPC_NAME=name,
                KVCACHED_CAPACITY=CAPACITY,
                KVCACHED_MAX_CACHED_TOKENS=-1,
            )
            servers[name] = Server(model, settings, logs / name)
        for server in servers.values():
            stack.enter_context(server)
        with LedgerWatch(folder) as watch:
            found = _exercise(servers, watch)
        found.moments = watch.moments
        time.sleep(0.2)
        found.files = sorted(path.name for path in folder.iterdir())
        found.logs = {name: server.log for name, server in servers.items()}
    return found


def test_three_servers_start_in_the_same_second(results: Results) -> None:
    for name in GROUPS:
        assert "kvcached: elastic KV cache" in results.logs[name]
        assert f"lease on host: {name}/" in results.logs[name]


def test_what_is_held_adds_up_and_stays_within_the_capacity(results: Results) -> None:
    assert len(results.moments) > 500
    assert all(moment.adds_up for moment in results.moments)
    assert all(moment.used <= moment.capacity for moment in results.moments)
    assert max(moment.capacity for moment in results.moments) == CAPACITY


def test_a_neighbour_gets_what_an_idle_one_keeps_as_a_cache(results: Results) -> None:
    # One kept all of its prefixes, and two alone needs more than what that left.
    assert results.held["one, idle"] > CAPACITY // 2
    assert results.held["two, idle"] > CAPACITY - results.held["one, idle"]
    assert results.held["one, after two"] < results.held["one, idle"]


def test_tokens_are_the_same_for_each(results: Results) -> None:
    assert results.tokens["one"] == results.tokens["two"] == results.tokens["three"]


def test_a_limit_on_an_idle_server_holds_at_once_and_can_be_lifted(results: Results) -> None:
    assert results.limit_answered
    assert results.held_under_limit <= 24 * MIB
    assert results.tokens_after_limit == results.tokens["one"]


def test_what_a_killed_server_held_is_back_within_a_second(results: Results) -> None:
    assert results.held["three, before death"] > CAPACITY // 4
    assert results.seconds_until_dead_is_gone < 1.0


def test_no_file_is_left_when_the_last_has_stopped(results: Results) -> None:
    assert results.exits == {"one": 0, "two": 0}
    assert results.files == []


def test_nobody_complained(results: Results) -> None:
    for name in GROUPS:
        assert elasticity.complaints(results.logs[name]) == []
