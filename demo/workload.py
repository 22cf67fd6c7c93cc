"""Plays the plan against the servers' OpenAI API and keeps what came back, and when."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import httpx

from demo.plan import Burst, Plan, questions

REQUEST_TIMEOUT_SECONDS = 600.0

WARM_UP = ("Hello!", 4)
"""A question and the length of its answer, for each server before all else: its first request
also sets the server up."""

LOOK_SECONDS = 0.1


class RequestFailed(RuntimeError):
    """A server refused a request or broke off an answer."""


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

    model: str
    requests: int
    began: float
    ended: float

    def since(self, moment: float) -> PlayedBurst:
        """The same with moments counted from another one."""
        return PlayedBurst(self.model, self.requests, self.began - moment, self.ended - moment)


@dataclass
class Workload:
    """A plan being played. Other threads may read every field while it runs."""

    plan: Plan
    phase: str = "warming up"
    busy: str = ""
    """The model whose burst is being played."""
    running: int = 0
    speaking: int = 0
    """Requests with a first token and not yet the last."""
    answers: list[Answer] = field(default_factory=list)
    """In the order of the questions once the plan is over; before that, as they finish."""
    bursts: list[PlayedBurst] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over the time in which there was something to do."""
        busy = sum(burst.ended - burst.began for burst in self.bursts)
        return sum(answer.tokens for answer in self.answers) / busy if busy else 0.0

    def play(self, urls: Mapping[str, str], in_the_middle: Callable[[], None]) -> None:
        """Send each model's requests to its URL and return after the last pause.

        `in_the_middle` is called in a thread of its own when every request of the middle burst is
        being answered. Raises RequestFailed.
        """
        asyncio.run(self._play(urls, in_the_middle))

    async def _play(self, urls: Mapping[str, str], in_the_middle: Callable[[], None]) -> None:
        supply = questions()
        # No proxy: the servers are on this machine whatever the environment says.
        async with httpx.AsyncClient(
            timeout=REQUEST_TIMEOUT_SECONDS,
            trust_env=False,
            # A request that waits for a connection would look like one that waits for memory.
            limits=httpx.Limits(max_connections=None),
        ) as client:
            warm = [self._ask(client, urls[model], model, *WARM_UP) for model in self.plan.models]
            await asyncio.gather(*warm)
            self.answers = []
            in_order: list[Answer] = []
            for number, burst in enumerate(self.plan.bursts, start=1):
                self.busy = burst.model
                self.phase = f"burst {number} of {len(self.plan.bursts)}, to {burst.model}"
                asks = islice(supply, burst.requests)
                burst_ended = asyncio.Event()
                looking = asyncio.create_task(self._look(burst, burst_ended, in_the_middle))
                in_order += await self._burst(client, urls[burst.model], burst, list(asks))
                burst_ended.set()
                await looking
                self.busy = ""
                self.phase = f"both idle after burst {number}"
                await asyncio.sleep(burst.pause_seconds)
        self.answers = in_order
        self.phase = "done"

    async def _burst(
        self, client: httpx.AsyncClient, url: str, burst: Burst, asks: list[str]
    ) -> list[Answer]:
        began = time.monotonic()
        answers = await asyncio.gather(
            *(self._ask(client, url, burst.model, ask, burst.max_tokens) for ask in asks)
        )
        self.bursts.append(PlayedBurst(burst.model, burst.requests, began, time.monotonic()))
        return list(answers)

    async def _look(self, burst: Burst, ended: asyncio.Event, call: Callable[[], None]) -> None:
        if burst is not self.plan.middle:
            return
        while not ended.is_set():
            if self.speaking == burst.requests:
                await asyncio.to_thread(call)
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _ask(
        self, client: httpx.AsyncClient, url: str, model: str, question: str, max_tokens: int
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
            answer = await self._stream(client, url, request, question)
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise RequestFailed(f"{model}: {question!r}: {error!r}") from error
        finally:
            self.running -= 1
        self.answers.append(answer)
        return answer

    async def _stream(
        self, client: httpx.AsyncClient, url: str, request: dict[str, object], question: str
    ) -> Answer:
        asked = time.monotonic()
        first_token: float | None = None
        pieces: list[str] = []
        tokens = 0
        path = f"{url}/v1/chat/completions"
        async with client.stream("POST", path, json=request) as response:
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
                        if first_token is None:
                            first_token = time.monotonic()
                            self.speaking += 1
                        pieces.append(piece)
                if usage := chunk.get("usage"):
                    tokens = usage["completion_tokens"]
        finished = time.monotonic()
        self.speaking -= first_token is not None
        return Answer(question, "".join(pieces), tokens, asked, first_token or finished, finished)
