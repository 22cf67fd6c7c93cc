"""Plays the plan against a server's OpenAI API and keeps what came back, and when."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from itertools import islice

import httpx

from demo.plan import Burst, questions

REQUEST_TIMEOUT_SECONDS = 300.0


class RequestFailed(RuntimeError):
    """The server refused a request or broke off an answer."""


@dataclass(frozen=True)
class Answer:
    """One request's answer. Moments are seconds of the monotonic clock."""

    question: str
    text: str
    tokens: int
    asked: float
    first_token: float
    finished: float

    @property
    def seconds_to_first_token(self) -> float:
        return self.first_token - self.asked


@dataclass(frozen=True)
class PlayedBurst:
    """A burst as it went: from its first request to its last answer."""

    requests: int
    began: float
    ended: float

    def since(self, moment: float) -> PlayedBurst:
        """The same with moments counted from another one."""
        return PlayedBurst(self.requests, self.began - moment, self.ended - moment)


@dataclass
class Workload:
    """A plan being played. Other threads may read every field while it runs."""

    plan: tuple[Burst, ...]
    phase: str = "waiting"
    running: int = 0
    answers: list[Answer] = field(default_factory=list)
    """In the order of the questions once the plan is over; before that, as they finish."""
    bursts: list[PlayedBurst] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(burst.requests for burst in self.plan)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over the time in which there was something to do."""
        busy = sum(burst.ended - burst.began for burst in self.bursts)
        return sum(answer.tokens for answer in self.answers) / busy if busy else 0.0

    def play(self, base_url: str, model: str) -> None:
        """Send everything and return after the last pause. Raises RequestFailed."""
        asyncio.run(self._play(base_url, model))

    async def _play(self, base_url: str, model: str) -> None:
        supply = questions()
        in_order: list[Answer] = []
        # No proxy: the server is on this machine whatever the environment says.
        async with httpx.AsyncClient(
            base_url=base_url, timeout=REQUEST_TIMEOUT_SECONDS, trust_env=False
        ) as client:
            for number, burst in enumerate(self.plan, start=1):
                self.phase = f"burst {number} of {len(self.plan)}: {burst.requests} requests"
                began = time.monotonic()
                asks = islice(supply, burst.requests)
                in_order += await asyncio.gather(
                    *(self._ask(client, model, ask, burst.max_tokens) for ask in asks)
                )
                self.bursts.append(PlayedBurst(burst.requests, began, time.monotonic()))
                self.phase = "idle" if number == len(self.plan) else "pause"
                await asyncio.sleep(burst.pause_seconds)
        self.answers = in_order
        self.phase = "done"

    async def _ask(
        self, client: httpx.AsyncClient, model: str, question: str, max_tokens: int
    ) -> Answer:
        request = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self.running += 1
        try:
            answer = await _stream(client, request, question)
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise RequestFailed(f"{question!r}: {error!r}") from error
        finally:
            self.running -= 1
        self.answers.append(answer)
        return answer


async def _stream(client: httpx.AsyncClient, request: dict[str, object], question: str) -> Answer:
    asked = time.monotonic()
    first_token: float | None = None
    pieces: list[str] = []
    tokens = 0
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        if response.is_error:
            reason = (await response.aread()).decode(errors="replace")
            raise RequestFailed(f"{question!r}: HTTP {response.status_code}: {reason}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise RequestFailed(f"{question!r}: {chunk['error']}")
            for choice in chunk["choices"]:
                if piece := choice["delta"].get("content"):
                    first_token = first_token or time.monotonic()
                    pieces.append(piece)
            if usage := chunk.get("usage"):
                tokens = usage["completion_tokens"]
    finished = time.monotonic()
    return Answer(question, "".join(pieces), tokens, asked, first_token or finished, finished)
