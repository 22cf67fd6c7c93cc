"""vLLM's GPU worker, elastic."""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.worker.gpu_worker import Worker

from kvcached_vllm import engine, identity, say_once
from kvcached_vllm.attach import settings
from kvcached_vllm.extent_layout import EXTENT, by_extent, fits, least_extent_bytes
from kvcached_vllm.kv_placement import Placement, can_pack, packed, spec_of
from kvcached_vllm.waking import WakingRoom
from kvcached_vllm.warm_up import in_the_null_block
from kvcached_vllm.worker import ElasticWorker
from kvcached_vllm.working_memory import WorkingMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig

_log = logging.getLogger("vllm.kvcached")

#: GPUs whose memory is HBM, by compute capability: Ampere's, Hopper's and Blackwell's server
#: chips. Measured is an H200; on a chip with less bandwidth (a GB10), attention over a block-major
#: cache was published to take a third longer. See docs/how-it-works.md.
_WIDE_MEMORY = {(8, 0), (9, 0), (10, 0), (10, 3)}
#: Attention that finds a page by its id alone, and is compared with vanilla in the layout "extent".
_FINDS_PAGES_BY_ID = {"FLASH_ATTN", "FLASHINFER", "TRITON_ATTN"}
#: Of the device's memory, so little that vLLM's look at what is free never fails.
_HARDLY_ANY = 0.001
#: How vLLM's sleep() says that the device has less free memory than before, the last thing that it
#: looks at (0.26 v1/worker/gpu_worker.py, Worker.sleep).
_NOTHING_FREED = "Memory usage increased after sleeping."


class ElasticGPUWorker(ElasticWorker, Worker):  # type: ignore[misc]
    """vLLM's GPU worker, elastic."""

    # What vLLM's Worker has.
    device: torch.device
    cache_config: Any
    model_runner: Any
    init_snapshot: Any
    requested_memory: int

    _warming_up = False
    _peak_bytes = 0
    _working: WorkingMemory | None = None
    _waking: WakingRoom | None = None

    def init_device(self) -> None:
        """vLLM's init_device(), without its demand that the whole budget be free.

        It would refuse to start beside a neighbour that holds memory, which gives it back when it
        is asked.
        """
        wanted = self.cache_config.gpu_memory_utilization
        self.cache_config.gpu_memory_utilization = min(wanted, _HARDLY_ANY)
        try:
            super().init_device()
        finally:
            self.cache_config.gpu_memory_utilization = wanted
        self.requested_memory = math.ceil(self.init_snapshot.total_memory * wanted)

    def available_memory(self) -> int:
        """What vLLM would reserve for its cache, in bytes: its share of the device, less the
        weights and the peak of a step.

        vLLM takes whatever happens to the device's free memory meanwhile for its own use; that of
        a device with elastic neighbours says nothing, so only this process is asked.
        """
        cache = self.cache_config
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        if cache.kv_cache_memory_bytes:
            available = super().available_memory()
            self._peak_bytes = torch.cuda.max_memory_allocated(self.device) - before
            return available
        whole = int(self.init_snapshot.total_memory)
        # A size that is given keeps vLLM's profiling step and skips its look at the device.
        cache.kv_cache_memory_bytes = whole
        try:
            carved_out = whole - super().available_memory()
        finally:
            cache.kv_cache_memory_bytes = None
        self._peak_bytes = torch.cuda.max_memory_allocated(self.device) - before
        weights = int(self.model_runner.model_memory_usage)
        available = int(self.requested_memory) - weights - self._peak_bytes - carved_out
        _log.info(
            "kvcached: %.1f GiB of the device's %.1f GiB are this engine's share, %.1f GiB of them "
            "for weights and %.1f GiB for the peak of a step",
            self.requested_memory / 2**30,
            whole / 2**30,
            weights / 2**30,
            self._peak_bytes / 2**30,
        )
        return available

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """vLLM's allocation of the KV cache, over a region of ours."""
        super().initialize_from_config(kv_cache_config)
        # vLLM's worker notes how many ids there are, which may be more than blocks, and may share
        # this object with the scheduler.
        self.cache_config.num_gpu_blocks = kv_cache_config.num_blocks

    def _placed(self, config: KVCacheConfig) -> Placement:
        wanted = settings().layout
        if wanted == "layer" or not can_pack(config) or not self._kernels_take_whole_blocks(config):
            if wanted not in ("auto", "layer"):
                say_once(f"kvcached: KVCACHED_LAYOUT={wanted} is not possible with this attention")
            return super()._placed(config)
        if wanted == "auto" and torch.cuda.get_device_capability(self.device) not in _WIDE_MEMORY:
            return super()._placed(config)
        together = packed(config)
        if wanted != "block" and self._may_be_by_extent(config):
            geometry = self._geometry(together, least_extent_bytes(config))
            if fits(config, geometry.blocks_per_extent):
                made, slices = by_extent(config, geometry.blocks_per_extent)
                return Placement(made, geometry, EXTENT, slices)
        if wanted == EXTENT:
            say_once("kvcached: KVCACHED_LAYOUT=extent is not possible here; it is block")
        return super()._placed(together)

    def _may_be_by_extent(self, config: KVCacheConfig) -> bool:
        # Pipeline stages have layers of their own, and ids that every rank shares.
        alone = self.vllm_config.parallel_config.pipeline_parallel_size == 1
        # vLLM notes a token's experts at its slot, in as many slots as the scheduler has blocks for
        # (0.26 routed_experts_capturer.py, RoutedExpertsManager).
        alone &= not getattr(self.vllm_config.model_config, "enable_return_routed_experts", False)
        names = {
            backend.get_name() for _, backends in self._backends(config) for backend in backends
        }
        return alone and names <= _FINDS_PAGES_BY_ID

    def _backends(self, config: KVCacheConfig) -> Iterator[tuple[Any, list[Any]]]:
        """Each group with the attention backends of its layers."""
        for group in config.kv_cache_groups:
            specs = {name: spec_of(config, name) for name in group.layer_names}
            yield group, list(engine.attention_of(self.vllm_config, specs).values())

    def _kernels_take_whole_blocks(self, config: KVCacheConfig) -> bool:
        from vllm.v1.worker.utils import select_common_block_size

        for group, backends in self._backends(config):
            names = group.layer_names
            size = group.kv_cache_spec.block_size
            if not backends or select_common_block_size(size, backends) != size:
                return False
            if any(engine.scales_each_head(spec_of(config, name)) for name in names):
                return False  # not tried with any other layout than vLLM's
        return True

    def compile_or_warm_up_model(self) -> Any:
        """vLLM's warm-up, in the block that is always there."""
        self._warming_up = self._pager is not None
        try:
            result = super().compile_or_warm_up_model()
        finally:
            self._warming_up = False
        if self._pager is not None and self._marks is not None:
            self._working = WorkingMemory(self._pager, self.device, self._peak_bytes, self._marks)
            row = str(identity.row_path(self.vllm_config, settings(), self.rank))
            self._waking = WakingRoom(self._working, row, self.device)
        return result

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """vLLM's execute_model(), once the device has room for what the step works with."""
        if self._warming_up:
            in_the_null_block(scheduler_output)
        elif self._working is not None:
            self._working.hold()
        return super().execute_model(scheduler_output)

    def sleep(self, level: int = 1) -> None:
        """vLLM's sleep(). The cache needs none of it: the scheduler has emptied it before.

        vLLM fails where less of the whole device is free than before. A neighbour who has grown
        meanwhile is no reason to: that is what the memory was given back for.
        """
        if self._working is not None:
            self._working.release()
        try:
            super().sleep(level)
        except AssertionError as error:
            if self._pager is None or str(error) != _NOTHING_FREED:
                raise
            _log.warning(
                "kvcached: this engine sleeps at level %d, and less of the device is free than "
                "before: did others grow meanwhile?",
                level,
            )

    def wake_up(self, tags: list[str] | None = None) -> None:
        """vLLM's wake_up(), without zeroing the whole cache.

        vLLM zeroes an fp8 cache because its memory is new. Ours is zeroed before a step meets it,
        and what is not committed cannot be touched. What slept comes back once there is room for
        it.
        """
        with self._cache_out_of_sight(), self._room_to_wake(tags):
            super().wake_up(tags)

    def _room_to_wake(self, tags: list[str] | None) -> contextlib.AbstractContextManager[None]:
        if self._waking is None:
            return contextlib.nullcontext()
        return self._waking.entered(lambda: engine.sleeping_bytes(tags))

    @contextlib.contextmanager
    def _cache_out_of_sight(self) -> Iterator[None]:
        caches = getattr(self.model_runner, "kv_caches", None)
        if self._pager is None or not isinstance(caches, list):
            yield
            return
        kept = list(caches)
        caches.clear()
        try:
            yield
        finally:
            caches.extend(kept)

    def shutdown(self) -> None:
        """vLLM's shutdown(); also ends the thread that gives working memory back."""
        if self._working is not None:
            self._working.stop()
        super().shutdown()
