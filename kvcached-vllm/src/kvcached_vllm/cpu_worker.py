"""vLLM's CPU worker, elastic."""

from __future__ import annotations

from typing import Any

import psutil
from vllm.v1.worker.cpu_worker import CPUWorker

from kvcached_vllm import engine
from kvcached_vllm.worker import ElasticWorker


class ElasticCPUWorker(ElasticWorker, CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker, elastic.

    A cache that takes memory by demand does not need all of it free at start: where neighbours
    hold some, the worker asks for what is left instead of refusing to start.
    """

    # What vLLM's CPUWorker has.
    requested_cpu_memory: int

    #: Left to neighbours that start or grow between our look and vLLM's check.
    _HEADROOM = 0.1

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        cache = vllm_config.cache_config
        node = engine.memory_of_cpu_node()
        if node is not None and cache.kv_cache_memory_bytes is None:
            share = (1 - self._HEADROOM) * node.available_memory / node.total_memory
            cache.gpu_memory_utilization = min(cache.gpu_memory_utilization, share)
        super().__init__(vllm_config, *args, **kwargs)

    def available_memory(self) -> int:
        """vLLM's budget, at most what is free now."""
        node = engine.memory_of_cpu_node()
        if node is not None:
            held = psutil.Process().memory_info().rss
            free = int((1 - self._HEADROOM) * node.available_memory)
            self.requested_cpu_memory = min(self.requested_cpu_memory, held + free)
        return super().available_memory()
