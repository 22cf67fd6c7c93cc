"""The copy of SGLang's function that makes another scheduler."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from kvcached_sglang.launched import _naming

Made = str


def _stock(first: int, second: int = 2, *, third: int = 3, fourth: int) -> tuple[Any, ...]:
    return Made, first, second, third, fourth


def _copy() -> FunctionType:
    assert isinstance(_stock, FunctionType)
    return _naming(_stock, "Made", bytes)


def test_a_copy_makes_another_class_and_leaves_its_module_alone() -> None:
    assert _copy()(1, fourth=4)[0] is bytes
    assert Made is str
    assert _stock(1, fourth=4)[0] is str


def test_a_copy_has_all_the_defaults_of_the_original() -> None:
    assert _copy()(1, fourth=4)[1:] == (1, 2, 3, 4)
