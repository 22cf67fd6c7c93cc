"""What a server is made to do over HTTP; the same for a vanilla and for an elastic one."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from kv_memory import KvMemory
from scenarios.prompts import mixed, prompt
from server import Server

CLIENTS = 16


@dataclass
class HttpResults:
    """Everything that the tests compare between two servers."""

    crowd: list[list[int]] = field(default_factory=list)
    beside_an_abort: list[list[int]] = field(default_factory=list)
    after_an_abort: list[int] = field(default_factory=list)
    usage_during_stream: float = 0.0
    usage_after_abort: float = 1.0
    running_after_abort: float = 1.0
    hits_when_repeated: float = 0.0
    hits_after_reset: float = 0.0
    memory_at_start: KvMemory = field(default_factory=KvMemory)
    memory_one_second_later: KvMemory = field(default_factory=KvMemory)
    files_while_running: list[str] = field(default_factory=list)
    files_after_stop: list[str] = field(default_factory=list)
    exit_status: int | None = None
    log: str = ""


def exercise(server: Server, shm_dir: Path) -> HttpResults:
    """Run the whole workload, then stop the server with SIGTERM."""
    results = HttpResults(memory_at_start=server.memory())
    results.crowd = _crowd(server, requests=32)
    _abort_in_mid_stream(server, results)
    _repeat_and_reset(server, results)
    time.sleep(1.0)
    results.memory_one_second_later = server.memory()
    results.files_while_running = _files(shm_dir)
    results.exit_status = server.stop()
    results.files_after_stop = _files(shm_dir)
    results.log = server.log
    return results


def _crowd(server: Server, requests: int, crowd: str = "crowd") -> list[list[int]]:
    prompts, lengths = mixed(requests, longest=400, most=60, crowd=crowd)
    with ThreadPoolExecutor(CLIENTS) as clients:
        return list(clients.map(server.complete, prompts, lengths))


def _abort_in_mid_stream(server: Server, results: HttpResults) -> None:
    """Hang up on a long answer while others are being answered."""
    stream = server.stream(prompt("hung-up", 1500), 4000)
    for _ in itertools.islice(stream, 20):
        pass
    results.usage_during_stream = server.metric("vllm:kv_cache_usage_perc")
    with ThreadPoolExecutor(1) as beside:
        others = beside.submit(_crowd, server, 8, "beside")
        stream.close()  # type: ignore[attr-defined]
        results.beside_an_abort = others.result()
    results.running_after_abort = server.wait_for_metric("vllm:num_requests_running", 0, 5)
    results.usage_after_abort = server.wait_for_metric("vllm:kv_cache_usage_perc", 0, 5)
    results.after_an_abort = server.complete(prompt("after", 300), 60)


def _repeat_and_reset(server: Server, results: HttpResults) -> None:
    """Ask twice, then forget everything and ask again."""

    def hits_of_one_more() -> float:
        before = server.metric("vllm:prefix_cache_hits_total")
        server.complete(prompt("repeated", 500), 5)
        return server.metric("vllm:prefix_cache_hits_total") - before

    hits_of_one_more()
    results.hits_when_repeated = hits_of_one_more()
    server.reset_prefix_cache()
    results.hits_after_reset = hits_of_one_more()


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
