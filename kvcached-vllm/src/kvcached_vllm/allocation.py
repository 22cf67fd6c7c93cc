"""Hands vLLM a tensor over reserved address space where it allocates its KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable


class RegionForZeros(TorchFunctionMode):  # type: ignore[misc]
    """While active, a ``torch.zeros`` of exactly a region's size is given that region.

    This is PyTorch's own way to see calls; nothing is replaced. The memory reads as zeros (under
    KVCACHED_SANITY_CHECK as its pattern) once it is committed, and faults before. Every other
    call passes through.
    """

    def __init__(
        self, regions: dict[int, Callable[[], torch.Tensor]], device: torch.device
    ) -> None:
        """`regions`: a function that makes the tensor, by the size in bytes asked for."""
        super().__init__()
        self._regions = dict(regions)
        self._device = device

    @property
    def unused(self) -> list[int]:
        """Sizes that were never asked for."""
        return list(self._regions)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """PyTorch's hook; see TorchFunctionMode."""
        kwargs = kwargs or {}
        if func is torch.zeros and len(args) == 1 and args[0] in self._regions:
            device = torch.device(kwargs.get("device", "cpu"))
            if kwargs.get("dtype") is torch.int8 and device.type == self._device.type:
                return self._regions.pop(args[0])()
        return func(*args, **kwargs)
