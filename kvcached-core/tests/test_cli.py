"""kvctl's commands that look, remove and check, against real processes with real leases."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_inventory import GIB, MIB, Holder, hold

from kvcached import hooks
from kvcached.cli import main

__all__ = ["hold"]

Kvctl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kvctl(
    shm_dir: Path, capsys: pytest.CaptureFixture[str], clean_environment: pytest.MonkeyPatch
) -> Kvctl:
    """Runs a command in the test's directory; returns exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["--dir", str(shm_dir), *arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_list_shows_devices_and_engines(hold: Callable[..., Holder], kvctl: Kvctl) -> None:
    hold("vllm", "ab12", GIB, limit_bytes=2 * GIB)
    code, out, _ = kvctl("list")
    assert code == 0
    device, header, row = out.splitlines()
    assert (
        device
        == "host: 1.0 GiB of 8.0 GiB held by engines, 16.0 GiB of 32.0 GiB free on the device"
    )
    assert header.split()[:2] == ["NAME", "ENGINE"]
    assert row.split()[:4] == ["vllm/ab12", "vllm", "host", "1"]
    assert "2.0 GiB" in row
    assert row.split()[-1] == "ok"


def test_list_is_json_on_request(hold: Callable[..., Holder], kvctl: Kvctl, shm_dir: Path) -> None:
    holder = hold("vllm", "ab12", GIB)
    (shm_dir / "GPU-old.ledger").touch()
    code, out, _ = kvctl("list", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["directory"] == str(shm_dir)
    (device,) = found["devices"]
    assert (device["id"], device["capacity_bytes"], device["used_bytes"]) == ("host", 8 * GIB, GIB)
    (instance,) = found["instances"]
    assert (instance["name"], instance["held_bytes"], instance["state"]) == ("vllm/ab12", GIB, "ok")
    assert instance["limit_bytes"] is None
    (lease,) = instance["leases"]
    assert (lease["pid"], lease["held_bytes"]) == (holder.process.pid, GIB)
    assert "GPU-old.ledger" in found["problems"][0]["path"]


def test_list_of_nobody_says_so(kvctl: Kvctl, shm_dir: Path) -> None:
    assert kvctl("list") == (0, f"no engine holds a lease in {shm_dir}\n", "")


def test_a_directory_that_is_missing_is_not_found(kvctl: Kvctl, shm_dir: Path) -> None:
    code, _, err = kvctl("--dir", str(shm_dir / "missing"), "list")
    assert code == 3
    assert "no such directory" in err


def test_the_directory_comes_from_the_environment(
    hold: Callable[..., Holder], shm_dir: Path
) -> None:
    hold("vllm", "ab12", MIB)
    done = subprocess.run(
        [sys.executable, "-m", "kvcached.cli", "list"],
        env={**os.environ, "KVCACHED_SHM_DIR": str(shm_dir)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "vllm/ab12" in done.stdout


def test_wrong_usage_exits_with_2(kvctl: Kvctl) -> None:
    assert kvctl("limit")[0] == 2
    assert kvctl("no-such-command")[0] == 2


def test_watch_repeats_as_lines_of_json_until_it_is_interrupted(
    hold: Callable[..., Holder], shm_dir: Path
) -> None:
    hold("vllm", "ab12", MIB)
    hold("vllm", "cd34", MIB)
    command = ["--dir", str(shm_dir), "watch", "vllm/ab", "-n", "0.1", "--json"]
    watching = subprocess.Popen(
        [sys.executable, "-m", "kvcached.cli", *command], stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    looks = [json.loads(watching.stdout.readline()) for _ in range(3)]
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=10)
    assert watching.returncode == 0
    assert looks[2]["time"] > looks[0]["time"]
    assert [instance["name"] for instance in looks[2]["instances"]] == ["vllm/ab12"]


def test_names_with_the_prefix_of_files_in_shared_memory_are_taken(
    hold: Callable[..., Holder], kvctl: Kvctl, shm_dir: Path
) -> None:
    holder = hold("gpu0_cache", "ab12", GIB)
    watching = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "kvcached.cli",
            "--dir",
            str(shm_dir),
            "watch",
            "kvcached_gpu0_cache",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    seen = [watching.stdout.readline() for _ in range(3)]
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=10)
    assert seen[2].startswith("gpu0_cache/ab12")
    assert kvctl("delete", "kvcached_gpu0_cache")[0] == 2, "it is alive"
    holder.kill()
    assert kvctl("delete", "kvcached_gpu0_cache")[0] == 0
    assert kvctl("delete", "kvcached_gpu0_cache")[0] == 3, "it is gone"


def test_watching_an_unknown_name_ends_at_once(kvctl: Kvctl) -> None:
    code, _, err = kvctl("watch", "vllm/zz")
    assert code == 3
    assert "there are none" in err


def test_delete_removes_what_the_dead_left(
    hold: Callable[..., Holder], kvctl: Kvctl, shm_dir: Path
) -> None:
    hold("vllm", "ab12", GIB).kill()
    (shm_dir / "vllm-ab12.0.row").write_bytes(b"\0" * 4096)
    code, out, _ = kvctl("delete")
    assert code == 0
    assert "vllm/ab12: removed the lease of rank 0 on host, 1.0 GiB given back" in out
    assert f"removed {shm_dir / 'vllm-ab12.0.row'}" in out
    assert f"removed {shm_dir / 'host.ledger'}" in out
    assert list(shm_dir.iterdir()) == []
    assert kvctl("delete") == (0, f"nothing left behind in {shm_dir}\n", "")


def test_delete_of_a_name_spares_the_living_beside_it(
    hold: Callable[..., Holder], kvctl: Kvctl, shm_dir: Path
) -> None:
    dead = hold("vllm", "ab12", GIB)
    hold("vllm", "cd34", MIB)  # who joins removes the dead, too
    dead.kill()
    code, out, _ = kvctl("delete", "vllm/ab12", "--json")
    assert code == 0
    (lease,) = json.loads(out)["leases"]
    assert (lease["name"], lease["freed_bytes"]) == ("vllm/ab12", GIB)
    assert "vllm/cd34" in kvctl("list")[1]
    assert "vllm/ab12" not in kvctl("list")[1]


def test_delete_refuses_the_living_and_says_how_to_end_them(
    hold: Callable[..., Holder], kvctl: Kvctl
) -> None:
    holder = hold("vllm", "ab12", GIB)
    code, _, err = kvctl("delete", "vllm/ab12")
    assert code == 2
    assert "vllm/ab12 is alive; end vllm itself" in err
    assert str(holder.process.pid) in err
    assert kvctl("delete", "sglang")[0] == 3


class Metrics(http.server.BaseHTTPRequestHandler):
    """Answers /metrics with what the server was given."""

    def do_GET(self) -> None:
        answer: bytes | None = self.server.answer  # type: ignore[attr-defined]
        if answer is None:
            time.sleep(1)
            return
        self.send_response(200 if self.path == "/metrics" else 404)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[bytes | None], str]]:
    """Serves metrics; returns the URL."""
    servers = []

    def start(answer: bytes | None) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
        server.answer = answer  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


SAMPLES = b'# TYPE kvcached_lease_info gauge\nkvcached_lease_info{rank="0"} 1.0\n'


def test_check_passes_where_leases_are_shown(kvctl: Kvctl, serve: Callable[..., str]) -> None:
    url = serve(SAMPLES)
    assert kvctl("check", "--url", url) == (0, f"{url}/metrics: elastic, 1 lease\n", "")
    assert kvctl("check", "--url", f"{url}/metrics")[0] == 0
    assert json.loads(kvctl("check", "--url", f"{url}/", "--json")[1])["leases"] == 1


def test_check_fails_in_one_line_where_there_are_none(
    kvctl: Kvctl, serve: Callable[..., str]
) -> None:
    vanilla = serve(b"# TYPE kvcached_lease_info gauge\nvllm:num_requests_running 0\n")
    for url, reason in (
        (vanilla, "no kvcached_lease_info: the engine runs vanilla"),
        (f"{vanilla}/elsewhere", "HTTP 404"),
        ("http://127.0.0.1:1", "Connection refused"),
    ):
        code, out, err = kvctl("check", "--url", url)
        assert (code, out) == (1, "")
        assert reason in err
        assert err.count("\n") == 1


def test_check_does_not_wait_for_ever(kvctl: Kvctl, serve: Callable[..., str]) -> None:
    code, _, err = kvctl("check", "--url", serve(None), "--timeout", "0.2")
    assert code == 1
    assert "timed out" in err


def test_check_takes_http_alone(kvctl: Kvctl) -> None:
    code, _, err = kvctl("check", "--url", "file:///etc/passwd")
    assert code == 2
    assert "not a URL" in err


def test_packages_add_commands_and_a_broken_one_takes_none_along(kvctl: Kvctl) -> None:
    class Good:
        @hooks.hookimpl
        def kvcached_cli(self, app: Any) -> None:
            @app.command()
            def greet() -> None:
                print("hello")

    class Broken:
        @hooks.hookimpl
        def kvcached_cli(self, app: Any) -> None:
            raise RuntimeError("no hands")

    good, broken = Good(), Broken()
    hooks.manager().register(good, name="good")
    hooks.manager().register(broken, name="broken")
    try:
        code, out, err = kvctl("greet")
    finally:
        hooks.manager().unregister(good)
        hooks.manager().unregister(broken)
    assert (code, out) == (0, "hello\n")
    assert err == "kvctl: the commands of broken are missing: no hands\n"


def test_names_are_completed(hold: Callable[..., Holder], shm_dir: Path) -> None:
    hold("vllm", "ab12", MIB)
    done = subprocess.run(
        [sys.executable, "-m", "kvcached.cli"],
        env={
            **os.environ,
            "KVCACHED_SHM_DIR": str(shm_dir),
            "_KVCTL_COMPLETE": "complete_bash",
            "COMP_WORDS": "kvctl limit v",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["vllm", "vllm/ab12"]


def test_without_its_extra_it_says_what_to_install() -> None:
    script = (
        "import sys, importlib.util\n"
        "from kvcached.cli import main\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'typer' else found(name)\n"
        "sys.exit(main(['list']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == ("kvctl: typer and rich are missing: pip install typer rich\n")
