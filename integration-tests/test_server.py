"""vLLM's server over HTTP: its usual processes, clients that hang up, a stop by SIGTERM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import elasticity
import http_workload
from comparison import assert_same
from footprint import Geometry
from http_workload import HttpResults
from server import Server

GEOMETRY = Geometry(layers=4, block_bytes_per_layer=32 * 1024, block_tokens=32)


@pytest.fixture(scope="module")
def vanilla(model: Path, tmp_path_factory: pytest.TempPathFactory) -> HttpResults:
    folder = tmp_path_factory.mktemp("vanilla-server")
    with Server(model, elasticity.vanilla(), folder / "log") as server:
        return http_workload.exercise(server, folder / "no-shared-files")


@pytest.fixture(scope="module")
def elastic(
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    new_shm_dir: Callable[[], Path],
    require_elastic: Callable[[str, Mapping[str, int]], None],
) -> HttpResults:
    shm_dir = new_shm_dir()
    log = tmp_path_factory.mktemp("elastic-server") / "log"
    with Server(model, elasticity.elastic(shm_dir), log) as server:
        require_elastic(server.log, server.memory().as_dict())
        return http_workload.exercise(server, shm_dir)


def test_concurrent_clients_get_the_same_tokens(vanilla: HttpResults, elastic: HttpResults) -> None:
    assert_same(vanilla.crowd, elastic.crowd)


def test_a_client_that_hangs_up_disturbs_no_other(
    vanilla: HttpResults, elastic: HttpResults
) -> None:
    assert_same(vanilla.beside_an_abort, elastic.beside_an_abort)
    assert_same([vanilla.after_an_abort], [elastic.after_an_abort])


def test_a_client_that_hangs_up_gives_its_blocks_back(
    vanilla: HttpResults, elastic: HttpResults
) -> None:
    for side in (vanilla, elastic):
        assert side.usage_during_stream > 0
        assert side.running_after_abort == 0
        assert side.usage_after_abort == 0


def test_reset_prefix_cache_forgets(vanilla: HttpResults, elastic: HttpResults) -> None:
    for side in (vanilla, elastic):
        assert side.hits_when_repeated > 0
        assert side.hits_after_reset == 0


def test_one_second_after_the_last_request_the_server_holds_little(elastic: HttpResults) -> None:
    assert 0 < elastic.memory_one_second_later.resident <= GEOMETRY.idle_bound()


def test_no_server_log_complains(vanilla: HttpResults, elastic: HttpResults) -> None:
    for side in (vanilla, elastic):
        assert elasticity.complaints(side.log) == []


def test_a_server_stopped_by_sigterm_leaves_no_file(
    vanilla: HttpResults, elastic: HttpResults
) -> None:
    assert elastic.files_while_running != [], "an elastic engine shares its page table"
    assert elastic.files_after_stop == []
    assert elastic.exit_status == vanilla.exit_status
