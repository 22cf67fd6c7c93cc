"""The stages of a pipeline see the same pages, though each comes to a turn of the loop at its time.

SGLang's stages turn alike, one behind the other: stage p ends a turn only when the first is p turns
further (``event_loop_pp``: results go round, and a stage passes on at its next turn what it got at
this one). So no stage may wait for another at the same turn. The first stage decides; what it says
goes down with the requests, whose way is the same. What a stage offers goes up, and the first reads
it as many rounds later as there are stages: by then it was sent without anything that the first has
yet to do, stage p being at most p turns behind.

An offer is therefore a promise: until the first stage has decided by a later one, the memory that
was offered as *firm* stays.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kvcached_sglang.agreement import Terms

if TYPE_CHECKING:
    from collections.abc import Callable

#: SGLang's own messages between stages have tag 0.
_TAG = 4711


@dataclass(frozen=True)
class Offer:
    """What a stage can do for the next batches; pages in use are included."""

    firm: int
    """Pages that have memory, which stays until the offer is answered."""
    most: int
    """Pages that it could come to, as far as is known."""
    evict: int
    """Tokens of cached prefixes to drop."""


class Line(Protocol):
    """Messages between the first stage and the others; none overtakes another."""

    def send(self, stage: int, numbers: list[int]) -> None:
        """Sends without waiting for the receiver."""

    def receive(self, stage: int, count: int) -> list[int]:
        """Waits for the next message of so many numbers."""


class StageRounds:
    """One rank's part in settling terms. Every stage must call it at the same turns."""

    def __init__(
        self,
        line: Line,
        stage: int,
        stages: int,
        least: Callable[[list[int]], list[int]] | None = None,
        late: int | None = None,
    ) -> None:
        """`least`: the smallest of all numbers of the ranks of this stage, place by place; None
        where the stage is one rank. `late`: after how many rounds an offer is read; by default as
        many as there are stages."""
        self._line = line
        self._stage = stage
        self._stages = stages
        self._least = least
        self._late = stages if late is None else late
        self._round = 0
        self._answered = 0
        # The first stage's own offer is answered at once.
        self._open: deque[int] = deque(maxlen=self._late if stage else 1)

    @property
    def is_first(self) -> bool:
        """Whether this is the stage that decides."""
        return self._stage == 0

    @property
    def promised(self) -> int:
        """Pages of the largest offer that a batch may still be formed with."""
        return max(self._open, default=0)

    def settle(self, own: Offer, decide: Callable[[Offer | None], Terms]) -> Terms:
        """Settles the terms of the next batch. `decide` is asked on the first stage, with the least
        of all offers, or None while not every stage has made one."""
        offer = self._of_the_stage(own)
        self._open.append(offer.firm)
        if self.is_first:
            terms = decide(self._least_of_all(offer))
            for stage in range(1, self._stages):
                self._line.send(stage, [terms.pages, terms.evict])
        else:
            self._line.send(0, [offer.firm, offer.most, offer.evict])
            terms = Terms(*self._line.receive(0, 2))
        self._round += 1
        return terms

    def _of_the_stage(self, own: Offer) -> Offer:
        # What was asked for is on its way, and would be dropped twice.
        evict = own.evict if self._round >= self._answered else 0
        firm, most = own.firm, own.most
        if self._least is not None:
            firm, most, kept = self._least([firm, most, -evict])
            evict = -kept
        if evict and not self.is_first:
            self._answered = self._round + self._late + 1
        return Offer(firm, most, evict)

    def _least_of_all(self, own: Offer) -> Offer | None:
        if self._round < self._late:
            return None
        offers = [Offer(*self._line.receive(stage, 3)) for stage in range(1, self._stages)]
        offers.append(own)
        return Offer(
            min(offer.firm for offer in offers),
            min(offer.most for offer in offers),
            max(offer.evict for offer in offers),
        )


class GroupLine:
    """A line over a process group for CPU tensors."""

    def __init__(self, group: Any, ranks: list[int]) -> None:
        """`ranks`: of the stages, in their order, by their numbers in the world."""
        self._group = group
        self._ranks = ranks
        self._sent: deque[tuple[Any, Any]] = deque()
        # Older ones have been received: who sends a later round has had their answers.
        self._open = 2 * len(ranks) * len(ranks)

    def send(self, stage: int, numbers: list[int]) -> None:
        """Sends; the message lives until it is received."""
        import torch

        message = torch.tensor(numbers, dtype=torch.int64)
        work = torch.distributed.isend(message, self._ranks[stage], group=self._group, tag=_TAG)
        self._sent.append((work, message))
        while len(self._sent) > self._open:
            self._sent.popleft()[0].wait()

    def receive(self, stage: int, count: int) -> list[int]:
        """Waits for a message."""
        import torch

        message = torch.empty(count, dtype=torch.int64)
        torch.distributed.recv(message, self._ranks[stage], group=self._group, tag=_TAG)
        found: list[int] = message.tolist()
        return found
