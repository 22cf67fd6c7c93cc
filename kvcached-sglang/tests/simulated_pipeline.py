"""The stages of a pipeline in one thread, with the messages of SGLang's ``event_loop_pp``: each is
a real stage keeper, supply, pool and pager over a device of its own.

A seed chooses in which order stages go on. A stage waits where SGLang's does: for the requests of a
turn, for what the stage before has computed, for results, which go round, and until what it sent at
its last turn has been received.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from greenlet import getcurrent, greenlet
from simulated_device import Device
from simulated_scheduler import Request, Scheduler, arrivals

from kvcached_sglang.pipeline import StageRounds
from kvcached_sglang.stage_keeper import StageKeeper, among_stages

STAGES = 3
TURNS = 60
#: Of those, turns in which requests come.
BUSY = 24
_MOST_STEPS = 60000


class Stuck(AssertionError):
    """Stages wait for each other for ever."""


class Mail:
    """What stages have sent and nobody has received."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self._boxes: defaultdict[Any, deque[Any]] = defaultdict(deque)

    def send(self, box: Any, what: Any) -> None:
        self._boxes[box].append(what)

    def receive(self, box: Any) -> Any:
        while not self._boxes[box]:
            self._wait()
        return self._boxes[box].popleft()

    def wait_until_received(self, box: Any) -> None:
        while self._boxes[box]:
            self._wait()


class SimulatedLine:
    """Messages between the first stage and the others, by stage."""

    def __init__(self, mail: Mail, stage: int) -> None:
        self._mail = mail
        self._stage = stage

    def send(self, stage: int, numbers: list[int]) -> None:
        self._mail.send(("agreed", self._stage, stage), numbers)

    def receive(self, stage: int, count: int) -> list[int]:
        found: list[int] = self._mail.receive(("agreed", stage, self._stage))
        assert len(found) == count
        return found


class StageRequest(Request):
    """A request that knows its end."""

    def finished(self) -> bool:
        return len(self.output_ids) >= self.answer


class Stage(Scheduler):
    """One stage's scheduler, and its loop."""

    def __init__(
        self, device: Device, stage: int, mail: Mail, cap: int, chunk: int | None, late: int
    ) -> None:
        super().__init__(device, among_stages(STAGES), cap, chunk)
        self.running_mbs = [SimpleNamespace(reqs=[]) for _ in range(STAGES)]
        self.mbs: list[Any] = [None] * STAGES
        self.last_mbs: list[Any] = [None] * STAGES
        self.stage = stage
        self._mail = mail
        self.seen: list[list[Any]] = []
        """What was decided, by turn."""
        rounds = StageRounds(SimulatedLine(mail, stage), stage, STAGES, late=late)
        evict = lambda tree, tokens: tree.evict(tokens)  # noqa: E731
        self.keeper = StageKeeper(
            self, self.supply, among_stages(STAGES), evict, cap, rounds=rounds
        )

    def loop(self, came: list[list[tuple[int, int, int]]]) -> None:
        """All turns of SGLang's loop, a microbatch each."""
        mail, stage, following = self._mail, self.stage, (self.stage + 1) % STAGES
        results: Any = None
        for turn in range(TURNS):
            arriving = came[turn] if stage == 0 else mail.receive(("requests", stage))
            if following:
                mail.wait_until_received(("requests", following))
                mail.send(("requests", following), arriving)
            here, after = turn % STAGES, (turn + 1) % STAGES
            self.running_batch, self.last_batch = self.running_mbs[here], self.last_mbs[here]
            batch = self._formed(arriving)
            self.mbs[here], self.running_mbs[here] = batch, self.running_batch
            if batch is not None and stage:
                mail.receive(("computed", stage))
            mail.wait_until_received(("computed", following))
            if batch is not None:
                self._device.launch(self.supply.launched())
            mail.wait_until_received(("results", following))
            sent = batch if following == 0 else results
            if stage % 2 == 0 and sent is not None:
                mail.send(("results", following), sent)
            results = mail.receive(("results", stage)) if self.mbs[after] is not None else None
            if stage % 2 == 1 and sent is not None:
                mail.send(("results", following), sent)
            if self.mbs[after] is not None:
                self._see_results(after)
            if following and batch is not None:
                mail.send(("computed", following), batch)
            self.seen.append(list(self.decided))
            self.decided.clear()

    def _formed(self, arriving: list[tuple[int, int, int]]) -> Any:
        for number, prompt, answer in arriving:
            self.waiting_queue.append(StageRequest(number, [0] * prompt, answer))
        self.keeper.before_batch()
        self._note("sees", self._available(), self.supply.withheld_tokens)
        self._check_all_sums()
        # SGLang adds what it could evict to what it sees, and that is never below 0.
        assert self.supply._granted >= self.supply.used
        last = self.last_batch
        if last is not None and last.began:
            self.running_batch.reqs += [
                it for it in last.reqs if it is not last.half_in and not it.finished()
            ]
            last.began = False
        begun = self._begun()
        if begun:
            return SimpleNamespace(reqs=begun, began=True, half_in=self.chunked_req)
        decoding = self._decode()
        return SimpleNamespace(reqs=decoding, began=False, half_in=None) if decoding else None

    def _begun(self) -> list[Request]:
        running = list(self.running_batch.reqs)
        begun = self._prefill()
        # They join those that run once their results were seen.
        self.running_batch.reqs = running
        return begun

    def _see_results(self, microbatch: int) -> None:
        batch = self.mbs[microbatch]
        whole = self.running_batch
        # The next chunk has gone to another microbatch by now, and may have been the last.
        seen = [request for request in batch.reqs if request is not batch.half_in]
        if batch.half_in is not None:
            self._note("goes on", batch.half_in.number)
        self.running_batch = SimpleNamespace(reqs=list(seen))
        self._finish(seen)
        self.running_batch = whole
        running = self.running_mbs[microbatch]
        running.reqs = [request for request in running.reqs if not request.finished()]
        self.last_mbs[microbatch] = batch

    def _check_all_sums(self) -> None:
        batches = [it for it in (*self.running_mbs, *self.mbs, *self.last_mbs) if it is not None]
        living = {
            id(it): it
            for batch in batches
            for it in batch.reqs
            if it is not self.chunked_req and not it.finished()
        }
        whole = self.running_batch
        self.running_batch = SimpleNamespace(reqs=list(living.values()))
        self._check_sums()
        self.running_batch = whole


class SimulatedPipeline:
    """One schedule: everything that a seed can choose."""

    def __init__(self, where: Path, seed: int, late: int = STAGES) -> None:
        self._seed = seed
        self.happened: Counter[str] = Counter()
        self._dice = random.Random(seed)
        mail = Mail(self._wait)
        chunk = self._dice.choice((None, 3, 7))
        quiet: list[list[tuple[int, int, int]]] = [[] for _ in range(TURNS - BUSY)]
        # Some are so long that offers are answered several times before all of a prompt is in.
        longest = self._dice.choice((12, 30)) if chunk else 12
        self._arrivals = [*arrivals(self._dice, BUSY, longest), *quiet]
        cap = self._dice.choice((-1, 0, 6))
        self._devices = [Device(where, rank, self._dice, self._wait) for rank in range(STAGES)]
        self._stages = [
            Stage(device, stage, mail, cap, chunk, late)
            for stage, device in enumerate(self._devices)
        ]

    @staticmethod
    def _wait() -> None:
        conductor: Any = getcurrent().parent
        if conductor is not None:
            conductor.switch()

    def run(self) -> None:
        """Raises Stuck, or AssertionError at the first turn that stages leave in different ways."""
        try:
            going = [greenlet(lambda it=it: it.loop(self._arrivals)) for it in self._stages]
            for _ in range(_MOST_STEPS):
                if going[0].dead:  # and then nobody goes round any more
                    break
                self._dice.choice(self._devices).happen()
                self._dice.choice(going).switch()
            else:
                turns = [len(stage.seen) for stage in self._stages]
                raise Stuck(f"seed {self._seed}: stages stand at turns {turns}")
            self._compare()
        finally:
            for device in self._devices:
                device.stop()

    def _compare(self) -> None:
        for turn in range(min(len(stage.seen) for stage in self._stages)):
            told = [stage.seen[turn] for stage in self._stages]
            assert all(it == told[0] for it in told), f"seed {self._seed}, turn {turn}: {told}"
            for what, *_ in told[0]:
                self.happened[what] += 1
        self.happened["lacks"] += sum(stage.lacks for stage in self._stages)
