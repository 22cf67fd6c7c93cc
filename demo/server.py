"""Starts `vllm serve`, waits until it answers, and stops it and all its processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import final

import httpx
import psutil

READY_SECONDS = 300.0
"""Forty seconds is usual on two cores; a large model on a slow disk takes minutes."""

STOP_SECONDS = 15.0
POLL_SECONDS = 0.25
LINES_SHOWN_ON_FAILURE = 20


class ServerFailed(RuntimeError):
    """The server did not start; the message has its log's path and its last lines."""


@dataclass(frozen=True)
class ServerOptions:
    """How one `vllm serve` is started; two servers to compare differ in `environment` only."""

    model: str
    flags: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path


@final
class Server:
    """A running `vllm serve`; leaving the `with` block stops it, whatever happened inside."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.port = _free_port()
        self.seconds_to_ready = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._members: dict[int, psutil.Process] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def served_model(self) -> str:
        return "demo"

    @property
    def process_ids(self) -> list[int]:
        """The API server's process, and those of the engine and its workers."""
        return list(self._members)

    def start(self, on_progress: Callable[[str], None]) -> None:
        """Start and wait for health, telling the log's last line. Raises ServerFailed."""
        started = time.monotonic()
        self.options.log.parent.mkdir(parents=True, exist_ok=True)
        with self.options.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                env={**os.environ, **self.options.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                # Its own group: Ctrl-C reaches the demo alone, which then stops the server.
                start_new_session=True,
            )
        while not self._healthy():
            if self._process.poll() is not None:
                raise ServerFailed(self._failure(f"ended with {self._process.returncode}"))
            if time.monotonic() - started > READY_SECONDS:
                raise ServerFailed(self._failure(f"was not ready after {READY_SECONDS:.0f} s"))
            on_progress(self._last_log_line())
            time.sleep(POLL_SECONDS)
        self.seconds_to_ready = time.monotonic() - started
        self._remember_members()

    def stop(self) -> None:
        """End the server's processes: asked first, killed if they do not follow."""
        if self._process is None:
            return
        with _not_interrupted():
            self._remember_members()
            # The API server takes its engine down with it; a signal to all at once makes the
            # engine report the death of its workers as an error.
            self._process.terminate()
            _, alive = psutil.wait_procs(self._members.values(), timeout=STOP_SECONDS)
            for member in alive:
                member.kill()
            psutil.wait_procs(alive, timeout=STOP_SECONDS)
            self._process.wait()
        self._process = None

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _command(self) -> list[str]:
        vllm = Path(sys.executable).parent / "vllm"
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        name = ["--served-model-name", self.served_model]
        return [str(vllm), "serve", self.options.model, *address, *name, *self.options.flags]

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _remember_members(self) -> None:
        """Note the processes of the tree: those of a dead parent are no longer found in it."""
        assert self._process is not None
        try:
            root = psutil.Process(self._process.pid)
            self._members |= {one.pid: one for one in [root, *root.children(recursive=True)]}
        except psutil.NoSuchProcess:
            pass

    def _log_lines(self) -> list[str]:
        return self.options.log.read_text(errors="replace").splitlines()

    def _last_log_line(self) -> str:
        return next((line for line in reversed(self._log_lines()) if line.strip()), "")

    def _failure(self, what: str) -> str:
        tail = self._log_lines()[-LINES_SHOWN_ON_FAILURE:]
        return "\n".join([f"vllm serve {what}; its log: {self.options.log}", "", *tail])


@contextmanager
def _not_interrupted() -> Iterator[None]:
    """Put interruptions off: a second Ctrl-C must not leave a server behind."""
    signals = (signal.SIGINT, signal.SIGTERM)
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
