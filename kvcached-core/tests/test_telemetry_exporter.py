"""The exporter as a process of its own, and copies for servers of several processes."""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from kvcached import _C

pytest.importorskip("prometheus_client")

SERVE = "import sys; from kvcached.telemetry import exporter; exporter.serve(port=int(sys.argv[1]))"

# Several processes serve what one of them copies: what a scrape of any of them would bring.
COPIES = """
import sys
from pathlib import Path
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from kvcached import _C
from kvcached.telemetry.collector import LedgerCollector
from kvcached.telemetry.multiprocess import MultiprocessCopy
directory = Path(sys.argv[1])
def join(instance):
    terms = _C.LeaseTerms("vllm", instance, engine="vllm")
    path = str(directory / "host.ledger")
    return _C.Lease.join(path, "host", "host", 65536, 1 << 30, 2 << 30, terms)
stays, goes = join("stays"), join("goes")
copy = MultiprocessCopy(LedgerCollector(directory))
for size in (1, 2, 3):
    stays.resize(size << 20)
    goes.resize(size << 20)
    copy.update()
goes.leave()
copy.update()
copy.update()
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def start(shm_dir: Path, port: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        env={**os.environ, "KVCACHED_SHM_DIR": str(shm_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_says_where_serves_and_ends_on_sigterm(shm_dir: Path) -> None:
    lease = _C.Lease.join(
        str(shm_dir / "host.ledger"),
        "host",
        "host",
        64 << 10,
        1 << 30,
        2 << 30,
        _C.LeaseTerms("vllm", "a-dp0"),
    )
    with start(shm_dir) as exporter:
        assert exporter.stdout is not None
        line = exporter.stdout.readline()
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+/metrics", line)
        lease.resize(3 << 20)
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        held = 'kvcached_lease_held_bytes{device="host",engine_instance="a-dp0"'
        assert f'{held},group="vllm",rank="0"}} 3.145728e+06' in text
        # Its own registry: nothing of the exporter's process.
        assert "python_info" not in text
        exporter.send_signal(signal.SIGTERM)
        assert exporter.wait(10) == 0
        assert exporter.stdout.read() == ""
    lease.leave()


def test_a_port_in_use_is_one_line(shm_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with start(shm_dir, port) as exporter:
            _, errors = exporter.communicate(timeout=20)
    assert exporter.returncode != 0
    assert errors.splitlines()[-1].endswith(
        f"ExporterError: kvcached: 127.0.0.1:{port}: Address already in use; choose another "
        "address or port"
    )


def test_copies_count_once_and_forget_leases_that_are_gone(shm_dir: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COPIES, str(shm_dir)],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    value = {
        match[1]: float(match[2])
        for match in re.finditer(
            r'^(kvcached_lease_\w+\{.*instance="\w+").*\} (\S+)$', done.stdout, re.MULTILINE
        )
    }
    lease = '{device="host",engine_instance='
    assert value[f'kvcached_lease_held_bytes{lease}"stays"'] == 3 << 20
    assert value[f'kvcached_lease_grants_total{lease}"stays"'] == 3
    assert math.isnan(value[f'kvcached_lease_held_bytes{lease}"goes"'])
    assert value[f'kvcached_lease_grants_total{lease}"goes"'] == 3
    assert "# TYPE kvcached_lease_grants_total counter" in done.stdout
    assert 'worker_pid="' in done.stdout
    assert "kvcached_unreadable_ledgers 0.0" in done.stdout
