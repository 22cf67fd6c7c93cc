"""What running requests will take is counted once and stays right step by step."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest

from kvcached_vllm.lookahead import Lookahead

STEPS = 40


@dataclass
class Decoding:
    """A request that takes a token a step: all that is looked at of vLLM's."""

    num_computed_tokens: int

    def take(self, size: int) -> int:
        """Blocks that its next token takes."""
        taken = self.num_computed_tokens % size == 0
        self.num_computed_tokens += 1
        return int(taken)


def batch(seed: int) -> list[Any]:
    generator = random.Random(seed)
    return [Decoding(generator.randrange(500)) for _ in range(generator.randrange(50))]


@pytest.mark.parametrize("size", [1, 8, 16, 128])
def test_each_steps_blocks_are_foreseen_exactly(size: int) -> None:
    for seed in range(50):
        running = batch(seed)
        ahead = Lookahead(running, size)
        for _ in range(STEPS):
            assert ahead.next_step == sum(request.take(size) for request in running)
            ahead.pass_step()


@pytest.mark.parametrize("passed", [0, 1, 15, 30])
def test_several_steps_are_foreseen_too(passed: int) -> None:
    size = 16
    for seed in range(50):
        running = batch(seed)
        ahead = Lookahead(running, size)
        for _ in range(passed):
            for request in running:
                request.take(size)
            ahead.pass_step()
        foreseen = ahead.within(5)
        assert foreseen == sum(request.take(size) for _ in range(5) for request in running)


def test_a_count_is_stale_once_every_request_has_taken_a_block() -> None:
    ahead = Lookahead([Decoding(3), Decoding(5)], 16)  # type: ignore[list-item]
    for _ in range(16):
        assert not ahead.stale
        ahead.pass_step()
    assert ahead.stale
