"""What every benchmark of whole engines needs: an engine's environment, its process and its end."""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

VANILLA = {"ENABLE_KVCACHED": "false"}
ELASTIC = {"ENABLE_KVCACHED": "true", "KVCACHED_REQUIRED": "true"}
#: Host memory for the KV cache, where vLLM runs without a GPU; GiB.
HOST_KV_GIB = "1"
REPOSITORY = Path(__file__).parent.parent
#: What the engine's own process says stands above what the one that started it makes of that.
_LAST_LINES = 100
_STARTED = time.monotonic()


class EngineFailed(RuntimeError):
    """An engine did not do what it was started for; the message has its last lines."""


def environment(rows: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment and `variables`; engines with the same `rows` share a device."""
    rows.mkdir(mode=0o700, exist_ok=True)
    return {
        **os.environ,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", HOST_KV_GIB),
        "KVCACHED_SHM_DIR": str(rows),
        **variables,
    }


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    stdin: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """A process that leads a session of its own, for end_group(); what it prints is in `log`."""
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=REPOSITORY,
            pass_fds=pass_fds,
            start_new_session=True,
        )


def chosen() -> dict[str, str]:
    """The variables of this process's environment that engines and kvcached listen to; places on
    this machine's disk are nobody else's business."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(("VLLM_", "SGLANG_", "KVCACHED_")) and not value.startswith("/")
    }


def add_logs_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--logs`."""
    parser.add_argument(
        "--logs", type=Path, metavar="DIRECTORY", help="keep every engine's log there"
    )


def add_deadline_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--within`."""
    parser.add_argument(
        "--within",
        type=float,
        metavar="SECONDS",
        help="begin nothing later, and report what there is then: where a machine is lent by the "
        "minute, who is ended from outside has measured nothing",
    )


def seconds_left(options: argparse.Namespace) -> float:
    """Of those of `--within`, counted from the start of the program; infinity without it."""
    if options.within is None:
        return math.inf
    left: float = options.within - (time.monotonic() - _STARTED)
    return max(0.0, left)


def logs_of(options: argparse.Namespace, otherwise: Path) -> Path:
    """The directory for logs: that of `--logs`, made where it is missing."""
    logs: Path = options.logs or otherwise
    logs.mkdir(parents=True, exist_ok=True)
    return logs


def last_lines(log: Path) -> str:
    """The end of an engine's log, where it says why it failed."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])


def end_group(process: subprocess.Popen[bytes], grace: float = 15) -> None:
    """Ends a process that leads a session of its own, and whatever it started."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        if process.poll() is None:
            process.terminate()
            process.wait(grace)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
