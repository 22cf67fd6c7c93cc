"""All engines of a machine on one HTTP address, for Prometheus. Needs ``prometheus_client``."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server

from kvcached import settings, shm
from kvcached.telemetry.collector import LedgerCollector

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

#: As `kvctl exporter` has it.
DEFAULT_PORT = 9409


class ExporterError(RuntimeError):
    """The address cannot be served: which, why and what to do, in one line."""


def serve(host: str = "127.0.0.1", port: int = DEFAULT_PORT, directory: Path | None = None) -> None:
    """Serves ``/metrics`` until SIGTERM or SIGINT, from the main thread; says where in one line.

    `port` 0 takes a free one. `directory` is shm.directory()'s for the environment's settings
    where it is left out. Raises ExporterError where the address cannot be had.
    """
    if directory is None:
        loaded = settings.load()
        directory = shm.directory(loaded.shm_dir, loaded.shm_group)
    registry = CollectorRegistry()
    registry.register(LedgerCollector(directory))
    ended = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        try:
            server, thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise ExporterError(
                f"kvcached: {host}:{port}: {error.strerror}; choose another address or port"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{server.server_port}/metrics"
        print(f"kvcached: metrics of {directory} at {url}", flush=True)
        ended.wait()
        server.shutdown()
        server.server_close()
        thread.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
