"""Hands vLLM a tensor over reserved address space where it allocates its KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class RegionForZeros(TorchFunctionMode):  # type: ignore[misc]
    """While active, ``torch.zeros`` calls of exactly the expected sizes are given our memory.

    This is PyTorch's own way to see calls; nothing is replaced. The memory reads as zeros (under
    KVCACHED_SANITY_CHECK as its pattern) once it is committed, and faults before. Every other
    call passes through.
    """

    def __init__(
        self, expected: Sequence[tuple[int, Callable[[], torch.Tensor]]], device: torch.device
    ) -> None:
        """`expected`: the size in bytes of each call, in order, and what makes its tensor."""
        super().__init__()
        self._expected = list(expected)
        self._device = device

    @property
    def unused(self) -> list[int]:
        """Sizes that were never asked for."""
        return [size for size, _ in self._expected]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """PyTorch's hook; see TorchFunctionMode."""
        kwargs = kwargs or {}
        if func is torch.zeros and len(args) == 1 and self._expected:
            size, make = self._expected[0]
            device = torch.device(kwargs.get("device", "cpu"))
            if (
                args[0] == size
                and kwargs.get("dtype") is torch.int8
                and device.type == self._device.type
            ):
                del self._expected[0]
                return make()
        return func(*args, **kwargs)
