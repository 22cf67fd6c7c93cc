"""Load on several servers at once: a client's process for each, and what the clients saw."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import engines
from benchmarks.engines import EngineFailed
from benchmarks.samples import Samples
from benchmarks.servers import MODEL, Server

#: Seconds from telling the clients when to start until they do.
_HEAD_START = 0.5
#: Prompts are of ids below this, which every model has.
VOCABULARY = 1000


@dataclass(frozen=True)
class Traffic:
    """Every request of every server. Times are seconds; `start` is of time.time()."""

    start: float
    ended: float
    answers: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def all(self) -> list[Mapping[str, Any]]:
        return [answer for answers in self.answers.values() for answer in answers]

    @property
    def failures(self) -> list[str]:
        return [str(answer["error"]) for answer in self.all if answer["error"]]

    def milliseconds(self, name: str) -> Samples:
        """`ttft`, `tpot` or `late` of every request that has it; raises EngineFailed where none
        has."""
        values = [1e3 * answer[name] for answer in self.all if answer[name] is not None]
        if not values:
            raise EngineFailed(f"not one request was answered: {self.failures[:1]}")
        return Samples("ms", values)

    def points(self, name: str) -> dict[str, list[list[float]]]:
        """By server: [seconds since the start when it was due, milliseconds], for a plot."""
        return {
            server: [
                [round(answer["due"] - self.start, 3), round(1e3 * answer[name], 1)]
                for answer in answers
                if answer[name] is not None
            ]
            for server, answers in self.answers.items()
        }


def play(
    servers: Sequence[Server],
    due: Sequence[Sequence[float]],
    request: Mapping[str, Any],
    directory: Path,
    patience: float,
    seed: int = 0,
) -> Traffic:
    """Puts requests to every server at its `due` seconds and returns when all are answered.

    `request` has `prompt_tokens` and `output_tokens`; `patience` is for one request.
    Raises EngineFailed where a client ended by itself; failed requests are in the result.
    """
    clients: list[_Client] = []
    try:
        for number, (server, moments) in enumerate(zip(servers, due, strict=True)):
            order = {"vocabulary": VOCABULARY, **request, "url": server.url, "model": MODEL}
            order |= {"seed": seed + number, "due": list(moments), "patience": patience}
            clients.append(_Client(server, order, directory))
        for client in clients:
            client.wait_until_ready()
        start = time.time() + _HEAD_START
        for client in clients:
            client.start(start)
        deadline = start + max((moments[-1] for moments in due if moments), default=0.0)
        answers = {
            client.server.name: client.finish(deadline + patience + _HEAD_START)
            for client in clients
        }
    finally:
        for client in clients:
            client.kill()
    return Traffic(start, time.time(), answers)


class _Client:
    """One client's process."""

    def __init__(self, server: Server, order: Mapping[str, Any], directory: Path) -> None:
        self.server = server
        self._seen = directory / f"{server.name}.seen"
        self._seen.unlink(missing_ok=True)
        written = directory / f"{server.name}.order"
        written.write_text(json.dumps(order))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.client", str(written), str(self._seen)],
            cwd=engines.REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise self._failure("ended before it began")

    def start(self, moment: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{moment}\n")
        self._process.stdin.flush()

    def finish(self, deadline: float) -> list[dict[str, Any]]:
        try:
            status = self._process.wait(max(0.0, deadline - time.time()))
        except subprocess.TimeoutExpired:
            raise self._failure("did not end in time") from None
        if status != 0 or not self._seen.exists():
            raise self._failure(f"ended with {status}")
        answers: list[dict[str, Any]] = json.loads(self._seen.read_text())
        return answers

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _failure(self, what: str) -> EngineFailed:
        return EngineFailed(
            f"the client of {self.server.name} {what}; the server's log ends:\n"
            f"{engines.last_lines(self.server.log)}"
        )
