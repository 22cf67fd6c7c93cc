"""Until when copies in the background keep memory.

By a model of vLLM's offloading connector, of which a fence knows what it knows of the real one, and
which reads blocks when the real one does. The real one is in integration-tests/test_features.py.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from kvcached_vllm import NotElastic
from kvcached_vllm.connectors import TransferFence, kinds_reason, transfer_fence


@dataclass
class Connector:
    """What a fence asks of the connector's half on the scheduler's side."""

    _jobs: dict[int, Any] = field(default_factory=dict)
    _job_counter: int = 0

    def order(self, is_store: bool = True) -> int:
        """A job more; its number."""
        self._jobs[self._job_counter] = SimpleNamespace(is_store=is_store)
        self._job_counter += 1
        return self._job_counter - 1


class Engine:
    """Steps, and requests that end in them. Every request holds one block."""

    def __init__(self) -> None:
        self.requests: dict[int, object] = {}
        self.finished_req_ids: set[int] = set()
        self.connector = Connector()
        self.fence = TransferFence(self, self.connector)
        self.step = 0
        self.settled = 0
        self.freed_in: dict[int, int] = {}
        self.reads: dict[int, int] = {}

    def add(self, request: int) -> None:
        self.requests[request] = object()

    def end(self, request: int) -> None:
        del self.requests[request]
        self.finished_req_ids.add(request)
        self.freed_in[request] = self.step

    def plan(self, store: set[int]) -> None:
        """A step begins; of the requests that have ended since the last plan, and of running ones,
        those in `store` are to be copied."""
        self.step += 1
        for request in (*self.finished_req_ids, *self.requests):
            if request in store:
                self.reads[self.connector.order()] = request
        self.finished_req_ids = set()
        self.fence.planned(self.step)

    def finish(self, step: int) -> None:
        self.settled = self.fence.settled(step)
        self.check()

    def done(self, job: int) -> None:
        del self.connector._jobs[job]
        del self.reads[job]

    def check(self) -> None:
        """Nothing that is read, or may be by the next plan, is given away."""
        for request in (*self.reads.values(), *self.finished_req_ids):
            if request in self.freed_in:
                assert self.freed_in[request] > self.settled, request


class FullAttentionSpec:
    """By its name."""


class SlidingWindowSpec:
    """By its name."""


def wishing(name: str | None) -> Any:
    """A configuration with this connector."""
    return SimpleNamespace(kv_transfer_config=name and SimpleNamespace(kv_connector=name))


def test_beside_windows_the_offloading_connector_is_not_covered() -> None:
    kinds: Any = [FullAttentionSpec(), SlidingWindowSpec()]
    offloading = wishing("OffloadingConnector")
    assert kinds_reason(offloading, kinds[:1]) is None
    assert kinds_reason(wishing(None), kinds) is None
    assert kinds_reason(wishing("ExampleConnector"), kinds) is None
    reason = kinds_reason(offloading, kinds)
    assert reason == "the KV connector OffloadingConnector is not covered beside SlidingWindowSpec"


def test_there_is_a_fence_for_the_offloading_connector_alone() -> None:
    def scheduler(name: str | None, **connector: Any) -> Any:
        return SimpleNamespace(vllm_config=wishing(name), connector=SimpleNamespace(**connector))

    side = Connector()
    assert transfer_fence(scheduler(None)) is None
    assert transfer_fence(scheduler("ExampleConnector", connector_scheduler=side)) is None
    assert transfer_fence(scheduler("OffloadingConnector", connector_scheduler=side)) is not None
    with pytest.raises(NotElastic, match="does not say what it copies"):
        transfer_fence(scheduler("OffloadingConnector"))


def test_what_ends_in_a_step_stays_until_its_copy_is_done() -> None:
    engine = Engine()
    engine.add(1)
    engine.plan(set())
    engine.end(1)
    engine.finish(1)
    assert engine.settled == 0, "the next plan may order a copy"
    engine.plan({1})
    engine.finish(2)
    assert engine.settled == 0
    engine.plan(set())
    engine.finish(3)
    assert engine.settled == 0
    engine.done(0)
    engine.plan(set())
    engine.finish(4)
    assert engine.settled == 4, "nobody is there, and nothing is under way"


def test_a_copy_keeps_what_was_freed_since_and_nothing_older() -> None:
    engine = Engine()
    engine.add(1)
    for _ in range(5):
        engine.plan(set())
        engine.finish(engine.step)
    assert engine.settled == 4, "a step behind, while there are requests"
    engine.plan({1})
    for _ in range(5):
        engine.plan(set())
        engine.finish(engine.step)
    assert engine.settled == 4


def test_copies_into_the_cache_keep_nothing() -> None:
    engine = Engine()
    engine.add(1)
    engine.plan(set())
    engine.connector.order(is_store=False)
    for _ in range(5):
        engine.plan(set())
        engine.finish(engine.step)
    assert engine.settled == engine.step - 1


def test_jobs_that_were_forgotten_by_a_reset_are_waited_for_by_the_next_step() -> None:
    engine = Engine()
    engine.add(1)
    engine.plan({1})
    engine.end(1)
    engine.finish(1)
    engine.plan(set())
    engine.finish(2)
    assert engine.settled == 0
    engine.fence.reset()
    engine.connector._jobs.clear()
    engine.finish(2)
    assert engine.settled == 0, "workers have not heard of it"
    engine.reads.clear()
    engine.plan(set())
    engine.finish(3)
    assert engine.settled == 3


@pytest.mark.parametrize("seed", range(200))
def test_nothing_that_is_read_is_ever_given_away(seed: int) -> None:
    dice = random.Random(seed)
    engine = Engine()
    number = processed = 0
    in_flight = dice.choice((1, 2))
    for _ in range(80):
        for _ in range(dice.randrange(3)):
            number += 1
            engine.add(number)
        engine.plan({one for one in range(number + 1) if dice.random() < 0.5})
        while processed <= engine.step - in_flight:
            processed += 1
            for request in list(engine.requests):
                if dice.random() < 0.3:
                    engine.end(request)
            for job in list(engine.reads):
                if dice.random() < 0.2:
                    engine.done(job)
            engine.finish(processed)
    # All of it goes in the end.
    for request in list(engine.requests):
        engine.end(request)
    engine.plan(set())
    for job in list(engine.reads):
        engine.done(job)
    engine.finish(engine.step)
    assert engine.settled == engine.step
