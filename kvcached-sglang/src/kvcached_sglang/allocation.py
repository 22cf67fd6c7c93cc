"""Hands SGLang tensors over reserved address space where it allocates its KV pool."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvcached_sglang.kv_buffers import KVBuffers


class TensorsOverRegion(TorchFunctionMode):  # type: ignore[misc]
    """While active, each ``torch.zeros`` of a KV tensor's shape is given the next part of a region.

    This is PyTorch's own way to see calls; nothing is replaced. The memory reads as zeros once it
    is committed, and faults before. Every other call passes through.
    """

    def __init__(self, buffers: KVBuffers, region: torch.Tensor, dtype: torch.dtype) -> None:
        """`region`: all bytes of the region, as int8."""
        super().__init__()
        self._buffers = buffers
        self._region = region
        self._dtype = dtype
        self._next = 0

    @property
    def unused(self) -> int:
        """Parts that were never asked for."""
        return self._buffers.parts - self._next

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """PyTorch's hook; see TorchFunctionMode."""
        kwargs = kwargs or {}
        if func is torch.zeros and len(args) == 1 and isinstance(args[0], tuple):
            device = torch.device(kwargs.get("device", "cpu"))
            if kwargs.get("dtype") is self._dtype and device.type == self._region.device.type:
                made = self._tensor(args[0])
                if made is not None:
                    return made
        return func(*args, **kwargs)

    def _tensor(self, shape: tuple[int, ...]) -> torch.Tensor | None:
        rows = self._buffers.shape.rows
        if len(shape) == 3 and shape[0] == rows:
            return self._part(shape)
        if len(shape) == 4 and shape[:2] == (2, rows):
            # K and V of a layer in one tensor. Each half begins on a granule, so there is a gap.
            half = self._part(shape[1:])
            step = self._buffers.stride(self._next - 1) // half.element_size()
            self._next += 1
            whole = self._from(self._next - 2)
            return torch.as_strided(whole, shape, (step, *half.stride()))
        return None

    def _part(self, shape: tuple[int, ...]) -> torch.Tensor:
        made = self._from(self._next)[: math.prod(shape)].view(shape)
        self._next += 1
        return made

    def _from(self, part: int) -> torch.Tensor:
        return self._region[self._buffers.offsets[part] :].view(self._dtype)
