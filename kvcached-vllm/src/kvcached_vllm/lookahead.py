"""How many blocks the running requests will take, step by step, while they only decode."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.v1.request import Request


class Lookahead:
    """Requests that take a token a step need a block every `block_size` steps.

    So they are counted once, by when their block is full, and again only when the batch has
    changed; whoever has ended since is counted still. Counting takes tens of microseconds for
    hundreds of requests, which the steps of a small model would feel.
    """

    def __init__(self, running: Iterable[Request], block_size: int) -> None:
        """`running`: requests that take part in every step from the next on; `block_size` is in
        tokens."""
        self._due = [0] * block_size
        for request in running:
            self._due[-request.num_computed_tokens % block_size] += 1
        self._size = block_size
        self._age = 0

    def pass_step(self) -> None:
        """A step was scheduled since."""
        self._age += 1

    @property
    def stale(self) -> bool:
        """Whether every request that was counted has taken a block since."""
        return self._age >= self._size

    @property
    def next_step(self) -> int:
        """The most blocks that the next step takes."""
        return self._due[self._age % self._size]

    def within(self, steps: int) -> int:
        """The most blocks that the next `steps` steps take."""
        return sum(self._due[(self._age + step) % self._size] for step in range(steps))
