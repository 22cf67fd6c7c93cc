"""Prompts drawn from their names: the same on every machine and in every engine."""

from __future__ import annotations

import random

BYTES = 256  # Any byte is a token of the tiny models.


def prompt(name: str, length: int) -> list[int]:
    """Return the prompt of that name. Two names share no beginning, so no cached block."""
    generator = random.Random(name)
    return [generator.randrange(BYTES) for _ in range(length)]


def mixed(
    count: int, longest: int, most: int, crowd: str = "crowd"
) -> tuple[list[list[int]], list[int]]:
    """Return prompts of 1 to `longest` tokens, and answers' lengths of 1 to `most`.

    The extremes come first, and fewer requests are a beginning of more.
    """
    generator = random.Random(crowd)
    sizes, lengths = [1, longest], [most, 1]
    while len(sizes) < count:
        sizes.append(generator.randint(1, longest))
        lengths.append(generator.randint(1, most))
    prompts = [prompt(f"{crowd}-{number}", size) for number, size in enumerate(sizes)]
    return prompts[:count], lengths[:count]
