"""Compares what two engines answered, and says where they part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def differences(expected: Sequence[Any], actual: Sequence[Any]) -> list[int]:
    """Return the numbers of the requests that were answered differently."""
    assert len(expected) == len(actual), f"{len(expected)} answers against {len(actual)}"
    return [n for n, (one, other) in enumerate(zip(expected, actual, strict=True)) if one != other]


def assert_same(expected: Sequence[Any], actual: Sequence[Any], allowed: int = 0) -> None:
    """Fail if more than `allowed` requests were answered differently."""
    parted = differences(expected, actual)
    if len(parted) <= allowed:
        return
    first = parted[0]
    position = next(
        (
            n
            for n, (one, other) in enumerate(zip(expected[first], actual[first], strict=False))
            if one != other
        ),
        min(len(expected[first]), len(actual[first])),
    )
    raise AssertionError(
        f"{len(parted)} of {len(expected)} answers differ (allowed: {allowed}); the first is "
        f"request {first}, from token {position} on: {expected[first][position:][:8]} "
        f"became {actual[first][position:][:8]}"
    )
