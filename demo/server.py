"""Starts an engine's server, waits until it answers, and stops it and all its processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

import httpx

from demo.engine import Engine
from demo.processes import ProcessTree

READY_SECONDS = 400.0
"""A minute is usual for two at a time on two cores; a large model on a slow disk takes more."""

POLL_SECONDS = 0.25
LINES_SHOWN_ON_FAILURE = 20


class ServerFailed(RuntimeError):
    """The server did not start; the message has its log's path and its last lines."""


@dataclass(frozen=True)
class ServerOptions:
    """How one server is started."""

    engine: Engine
    model: str
    served_model: str
    """The name that requests give."""
    flags: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path


@final
class Server:
    """One server; see `running`, which stops it whatever happens."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._tree: ProcessTree | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def served_model(self) -> str:
        return self.options.served_model

    @property
    def process_ids(self) -> list[int]:
        """The API server's process, and those of the engine and its workers."""
        return self._tree.process_ids if self._tree is not None else []

    def start(self) -> None:
        """Start without waiting. From the main thread: the server ends with its caller's."""
        self.options.log.parent.mkdir(parents=True, exist_ok=True)
        with self.options.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                # This package is found from wherever the demo was called.
                cwd=Path(__file__).parent.parent,
                env={**os.environ, **self.options.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                # Its own group: Ctrl-C reaches the demo alone, which then stops the server.
                start_new_session=True,
            )
        self._tree = ProcessTree(self._process.pid)

    def ready(self) -> bool:
        """Whether it answers by now. Raises ServerFailed when it has ended."""
        assert self._process is not None
        assert self._tree is not None
        if self._process.poll() is not None:
            raise self.failed(f"ended with {self._process.returncode}")
        if not self._healthy():
            return False
        self._tree.look()
        return True

    def failed(self, what: str) -> ServerFailed:
        """What went wrong, with the log's path and its end."""
        tail = self._log_lines()[-LINES_SHOWN_ON_FAILURE:]
        program = self.options.engine.program
        first = f"{program} for {self.served_model} {what}; its log: {self.options.log}"
        return ServerFailed("\n".join([first, "", *tail]))

    def last_log_line(self) -> str:
        """The newest line that says anything."""
        return next((line for line in reversed(self._log_lines()) if line.strip()), "")

    def ask_to_stop(self) -> None:
        """Begin to stop it, without waiting."""
        if self._tree is not None:
            self._tree.ask_to_end()

    def wait_until_stopped(self) -> None:
        """Return when all its processes have ended and left nothing behind."""
        if self._tree is not None and self._process is not None:
            self._tree.wait_for_end()
            self._process.wait()

    def _command(self) -> list[str]:
        bound = [sys.executable, "-m", "demo.bound", str(os.getpid())]
        engine = self.options.engine
        serve = engine.command(self.options.model, self.served_model, self.port)
        return [*bound, *serve, *self.options.flags]

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _log_lines(self) -> list[str]:
        return self.options.log.read_text(errors="replace").splitlines()


@contextmanager
def running(
    options: Sequence[ServerOptions], on_progress: Callable[[dict[str, str]], None]
) -> Iterator[list[Server]]:
    """Servers that start at the same time; entered when all answer.

    Tells each one's last log line while it starts. Raises ServerFailed.
    """
    servers = [Server(one) for one in options]
    try:
        for server in servers:
            server.start()
        started = time.monotonic()
        while starting := [server for server in servers if not server.ready()]:
            if time.monotonic() - started > READY_SECONDS:
                raise starting[0].failed(f"was not ready after {READY_SECONDS:.0f} s")
            on_progress({one.served_model: one.last_log_line() for one in starting})
            time.sleep(POLL_SECONDS)
        yield servers
    finally:
        with _not_interrupted():
            for server in servers:
                server.ask_to_stop()
            for server in servers:
                server.wait_until_stopped()


@contextmanager
def _not_interrupted() -> Iterator[None]:
    """Put interruptions off: a second Ctrl-C must not leave a server behind."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(each, signal.SIG_IGN) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, previous, strict=True):
            signal.signal(each, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
