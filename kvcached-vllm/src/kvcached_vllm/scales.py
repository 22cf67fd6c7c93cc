"""Scales per token and head, which some attention keeps in the KV cache beside what they scale.

vLLM's Triton attention makes its views of them when it first runs, and writes a 1 into each slot of
the whole cache (0.26 and 0.32 v1/attention/backends/triton_attn.py, _ensure_scale_caches()), most
of which has no memory. Here the views are made as soon as the cache is there, and nothing is
written: a slot gets its scale with its token, and slots behind a request's last token are masked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from kvcached_vllm import engine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheSpec


def reason(config: VllmConfig, specs: Mapping[str, KVCacheSpec]) -> str | None:
    """Why layers with these caches cannot be elastic on account of their scales, or None. To be
    asked once the model is loaded. `specs`: by layer."""
    scaled = {name for name, spec in specs.items() if engine.scales_each_head(spec)}
    if scaled <= engine.scaled_layers(config).keys():
        return None
    return "where this attention keeps its scales per token and head is not covered"


def make_views(config: VllmConfig, region: torch.Tensor) -> None:
    """Has each layer's attention make its views of the scales in `region`, which is not touched."""
    with _Untouched(region):
        for layer in engine.scaled_layers(config).values():
            getattr(layer.impl, engine.MAKES_SCALES)(layer.kv_cache)


class _Untouched(TorchFunctionMode):  # type: ignore[misc]
    """While active, ``Tensor.fill_`` leaves tensors over our memory as they are.

    This is PyTorch's own way to see calls; nothing is replaced.
    """

    def __init__(self, region: torch.Tensor) -> None:
        super().__init__()
        self._storage = region.untyped_storage().data_ptr()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """PyTorch's hook; see TorchFunctionMode."""
        if func is torch.Tensor.fill_ and args[0].untyped_storage().data_ptr() == self._storage:
            return args[0]
        return func(*args, **(kwargs or {}))
