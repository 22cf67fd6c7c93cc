"""An engine as a scenario sees it: `vllm.LLM`, and a view of its blocks and its memory."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import kv_memory

Prompt = list[int]


class Session:
    """One running engine. In-process engines also show their scheduler and their worker."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.engine = llm.llm_engine

    @classmethod
    def open(cls, **options: Any) -> Session:
        from vllm import LLM
        from vllm.config import KVEventsConfig

        if events := options.get("kv_events_config"):
            options["kv_events_config"] = KVEventsConfig(**events)
        return cls(LLM(**options))

    # -- Asking ---------------------------------------------------------------------------

    def generate(self, prompts: Sequence[Prompt], parameters: Any) -> list[Any]:
        """Send all prompts at once and return vLLM's outputs in the prompts' order."""
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs: list[Any] = self.llm.generate(requests, parameters, use_tqdm=False)
        return outputs

    def greedy(self, prompts: Sequence[Prompt], lengths: Sequence[int]) -> list[Any]:
        return self.generate(prompts, [self.greedy_parameters(length) for length in lengths])

    @staticmethod
    def greedy_parameters(length: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)

    # -- Looking --------------------------------------------------------------------------

    @property
    def scheduler(self) -> Any | None:
        """The engine's scheduler, or None where it lives in another process."""
        core = getattr(self.engine.engine_core, "engine_core", None)
        return getattr(core, "scheduler", None)

    @property
    def worker(self) -> Any:
        """The only worker of an in-process engine."""
        return self.engine.model_executor.driver_worker.worker

    def geometry(self) -> dict[str, Any]:
        """Say what a block is made of; the sizes only where the scheduler can be seen."""
        config = self.engine.vllm_config
        found: dict[str, Any] = {
            "ranks": config.parallel_config.world_size,
            "block_tokens": config.cache_config.block_size,
            "model_runner": "V2" if getattr(config, "use_v2_model_runner", False) else "V1",
        }
        if self.scheduler is not None:
            cache = self.scheduler.kv_cache_config
            found["num_blocks"] = cache.num_blocks
        if self.scheduler is not None and cache.kv_cache_groups:
            # The tiny models' layers are all alike, and none shares its cache with another.
            found["layers"] = sum(len(group.layer_names) for group in cache.kv_cache_groups)
            spec = cache.kv_cache_groups[0].kv_cache_spec
            found["block_bytes_per_layer"] = spec.page_size_bytes
            found["places_per_layer"] = _places_of_a_block()
        return found

    def live_blocks(self) -> int:
        """Count the blocks that a request holds, without believing any counter."""
        assert self.scheduler is not None
        pool = self.scheduler.kv_cache_manager.block_pool
        return sum(block.ref_cnt > 0 and not block.is_null for block in pool.blocks)

    def block_counts(self) -> dict[str, float]:
        counts = {"usage": self.metric("vllm:kv_cache_usage_perc")}
        if self.scheduler is not None:
            pool = self.scheduler.kv_cache_manager.block_pool
            counts |= {
                "live": self.live_blocks(),
                "free": pool.get_num_free_blocks(),
                "total": pool.num_gpu_blocks,
                "unfinished": self.scheduler.get_num_unfinished_requests(),
            }
        return counts

    def metric(self, name: str) -> float:
        """Return one of vLLM's counters or gauges, summed over its labels."""
        return float(
            sum(
                metric.value
                for metric in self.llm.get_metrics()
                if metric.name == name and hasattr(metric, "value")
            )
        )

    def memory(self) -> kv_memory.KvMemory:
        return kv_memory.of_tree(os.getpid())

    def memory_after(self, seconds: float) -> kv_memory.KvMemory:
        """Let the engine lie idle, not even stepping, and see what it still holds."""
        time.sleep(seconds)
        return self.memory()


def _places_of_a_block() -> int:
    """In how many places of a layer a block lies: 2 where vLLM's attention on a CPU names keys and
    values first, and blocks behind (up to 0.22)."""
    from vllm.v1.attention.backends import cpu_attn

    backends: list[Any] = [
        kind
        for kind in vars(cpu_attn).values()
        if getattr(kind, "__module__", None) == cpu_attn.__name__
        and hasattr(kind, "get_kv_cache_shape")
    ]
    return 2 if backends and backends[0].get_kv_cache_shape(1000, 16, 1, 64)[0] == 2 else 1
