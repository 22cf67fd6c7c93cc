"""``kvctl check`` and ``kvctl exporter``: for those who look from outside."""

from __future__ import annotations

import http.client
import importlib
import urllib.error
import urllib.request
from typing import Annotated
from urllib.parse import urlsplit

import typer

from kvcached.cli.outcome import failed, refused, say, say_json
from kvcached.cli.place import AsJson, directory_of

_SAMPLE = b"kvcached_lease_info"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(check)
    app.command()(exporter)


def check(
    url: Annotated[str, typer.Option(help="Of the engine, such as http://127.0.0.1:8000.")],
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Readiness: does the engine at this address run elastic? Exit code 0 only if it does."""
    address = url.rstrip("/")
    if urlsplit(address).scheme not in ("http", "https"):
        raise refused(f"{url}: not a URL; allowed is http://HOST:PORT or https://HOST:PORT")
    if not address.endswith("/metrics"):
        address += "/metrics"
    leases = _count_leases(address, timeout)
    if leases == 0:
        raise failed(
            f"{address}: no {_SAMPLE.decode()}: the engine runs vanilla, or has not started; "
            "'kvctl doctor' in its environment says why"
        )
    if as_json:
        say_json({"url": address, "leases": leases})
    else:
        say(f"{address}: elastic, {leases} lease{'s' if leases > 1 else ''}")


def _count_leases(address: str, timeout: float) -> int:
    try:
        with urllib.request.urlopen(address, timeout=timeout) as answer:
            return sum(line.startswith(_SAMPLE) for line in answer)
    except urllib.error.HTTPError as error:
        raise failed(f"{address}: HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        why = getattr(error.reason, "strerror", None) or error.reason
        raise failed(f"{address}: {why}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise failed(f"{address}: {str(error) or type(error).__name__}") from None


def exporter(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 9409,
) -> None:
    """Serve the metrics of all engines of the directory for Prometheus, until Ctrl-C."""
    directory = directory_of(context)
    try:
        telemetry = importlib.import_module("kvcached.telemetry.exporter")
    except ImportError as error:
        raise refused(f"{error.name} is missing: pip install 'kvcached-core[telemetry]'") from None
    try:
        telemetry.serve(host, port, directory)
    except telemetry.ExporterError as error:
        raise refused(str(error).removeprefix("kvcached: ")) from None
