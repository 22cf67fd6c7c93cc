"""What every elastic vLLM worker does: its KV cache lies over reserved address space."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
from typing import TYPE_CHECKING, Any

import torch

from kvcached import _C, hooks, shm
from kvcached.sizes import format_size
from kvcached_vllm import NotElastic, connectors, engine, identity, say_once, scales
from kvcached_vllm.allocation import RegionForZeros
from kvcached_vllm.attach import settings
from kvcached_vllm.kv_layout import (
    aligned_bytes,
    config_reason,
    geometry_of,
    kind_reason,
    layers_of_stages,
    layout_of,
    longest_request_blocks,
)
from kvcached_vllm.kv_placement import Placement, allocations_of, parts_of_page, spans_of
from kvcached_vllm.launches import LaunchMarks
from kvcached_vllm.sanity import SanityError, StepCheck

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

    from kvcached.settings import Settings

_log = logging.getLogger("vllm.kvcached")
_DLPACK_DEVICE = {"cpu": 1, "cuda": 2}


class ElasticWorker:
    """Mixed into a vLLM worker."""

    # What vLLM's Worker has.
    vllm_config: Any
    rank: int

    _device: torch.device
    _driver: _C.Driver | None = None
    _pager: _C.Pager | None = None
    _row: _C.Row | None = None
    _marks: LaunchMarks | None = None
    _check: StepCheck | None = None
    _budget_bytes = 0
    _parts = 1
    """See kv_placement.parts_of_page()."""
    _reason: str | None = None
    _step_to_mark = 0

    def init_device(self) -> None:
        """vLLM's init_device(), then the device's driver."""
        super().init_device()  # type: ignore[misc]
        self._device = engine.device_of(self)
        try:
            self._driver = hooks.driver_for(self._device.type, self._device.index or 0)
        except _C.Error as error:
            self._stay_vanilla(f"no usable driver: {error}")

    def _stay_vanilla(self, reason: str) -> None:
        if settings().required:
            raise NotElastic(f"kvcached: KVCACHED_REQUIRED=true, but: {reason}")
        self._reason = reason

    def get_supported_kv_cache_layouts(self) -> list[str]:
        """vLLM's layouts, the one that suits us first: where all layers of a block lie together,
        an extent can be as small as one granule."""
        names: list[str] = super().get_supported_kv_cache_layouts()  # type: ignore[misc]
        wanted = settings().layout
        self._look_at_kinds()
        # On a CPU an extent is small in any layout, and vLLM's attention over latents fails in
        # others than its first (0.32 v1/attention/backends/mla/cpu_mla.py, do_kv_cache_update).
        if self._reason is not None or (wanted == "auto" and self._device.type == "cpu"):
            return names
        # vLLM spells a layout from its outermost dimension inwards: B is the block, L the layer.
        first = "L" if wanted == "layer" else "B"
        if wanted == "extent":
            say_once(
                "kvcached: KVCACHED_LAYOUT=extent is for vLLM before 0.29, which leaves layouts to "
                "its workers; it is block"
            )
        if wanted != "auto" and not any(name.startswith(first) for name in names):
            say_once(
                f"kvcached: KVCACHED_LAYOUT={wanted} is not offered by vLLM's attention here "
                f"({', '.join(names)})"
            )
        return sorted(names, key=lambda name: not name.startswith(first))

    def determine_available_memory(self) -> int:
        """vLLM's budget for the KV cache, which is address space here and the limit of what is
        committed in it."""
        available = self.available_memory()
        specs = self._look_at_kinds()
        if self._reason is None:
            self._look_at_attention(specs)
        if self._reason is not None or self._driver is None:
            return available
        self._budget_bytes = available
        return aligned_bytes(specs, available, self._driver.granularity, self._parts)

    def _look_at_attention(self, specs: dict[str, KVCacheSpec]) -> None:
        if (parts := parts_of_page(self.vllm_config, specs)) is not None:
            self._parts = parts
        else:
            self._stay_vanilla("where this attention keeps keys and values is not covered")
        reason = (
            scales.reason(self.vllm_config, specs)
            # Once more: who names our classes explicitly was never asked.
            or connectors.reason(self.vllm_config, self._device.type)
            or connectors.kinds_reason(self.vllm_config, specs.values())
        )
        if reason is not None:
            self._stay_vanilla(reason)

    def _look_at_kinds(self) -> dict[str, KVCacheSpec]:
        """The layers' caches; stays vanilla where one of them is not covered."""
        specs: dict[str, KVCacheSpec] = self.get_kv_cache_spec()  # type: ignore[attr-defined]
        if self._reason is None and (reason := kind_reason(specs.values(), self._device.type)):
            self._stay_vanilla(reason)
        return specs

    def available_memory(self) -> int:
        """What vLLM would reserve for its cache, in bytes."""
        return int(super().determine_available_memory())  # type: ignore[misc]

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """vLLM's allocation of the KV cache, over a region of ours."""
        wanted = settings()
        directory = str(identity.directory(wanted))
        for path in [*_C.remove_dead_rows(directory), *_C.remove_dead_ledgers(directory)]:
            _log.info("kvcached: removed %s, left behind by a dead engine", path)
        path = str(identity.row_path(self.vllm_config, wanted, self.rank))
        name = identity.engine_name(self.vllm_config, wanted)
        reason = config_reason(kv_cache_config, self._device.type)
        if self._reason is None and reason is not None:
            self._stay_vanilla(reason)
        if self._reason is not None or self._driver is None:
            self._row = _C.Row.vanilla(path, name, self._reason or "no driver", self.rank)
            super().initialize_from_config(kv_cache_config)  # type: ignore[misc]
            return
        placed = self._placed(kv_cache_config)
        self._pager = self._start_pager(placed, path, name)
        # vLLM ends its workers with a signal at times; shutdown() is not always called.
        atexit.register(self._pager.stop)
        self._marks = LaunchMarks(self._pager, self._device)
        if wanted.sanity_check:
            self._check = StepCheck(self._pager, _C.Row.attach(path), placed.config)
        region = self._region(self._pager)
        expected = [
            (size, functools.partial(region.narrow, 0, at, size)) for at, size in placed.slices
        ]
        with RegionForZeros(expected, self._device) as mode:
            super().initialize_from_config(placed.config)  # type: ignore[misc]
        if mode.unused:
            raise NotElastic(
                "kvcached: vLLM did not allocate its KV cache where it was expected "
                f"({mode.unused} bytes); start with ENABLE_KVCACHED=false"
            )
        scales.make_views(self.vllm_config, region)

    def _placed(self, config: KVCacheConfig) -> Placement:
        """Where this rank's pages lie: as vLLM has it, where that is not ours to choose."""
        geometry = self._geometry(config)
        layout = layout_of(spans_of(config, self._parts))
        return Placement(config, geometry, layout, allocations_of(config))

    def _geometry(self, config: KVCacheConfig, least_part_bytes: int = 0) -> _C.Geometry:
        assert self._driver is not None
        text = self.vllm_config.model_config.hf_text_config
        layers = getattr(text, "num_hidden_layers", 0) or 0
        stages = layers_of_stages(layers, self.vllm_config.parallel_config.pipeline_parallel_size)
        least = max(least_part_bytes, settings().page_size_mb << 20)
        return geometry_of(config, layers, self._driver, least, stages, self._parts)

    def _start_pager(self, placed: Placement, path: str, name: str) -> _C.Pager:
        wanted = settings()
        assert self._driver is not None
        limit = wanted.limit or self._budget_bytes
        pager = _C.Pager(
            self._driver,
            placed.geometry,
            path,
            name,
            placed.layout,
            self.rank,
            limit,
            ledger=str(shm.ledger_path(identity.directory(wanted), self._driver.device_id)),
            shared=bool(wanted.shm_group),
            terms=self._terms(placed, limit, self._driver.granularity),
            sanity_check=wanted.sanity_check,
            zero_in_steps=self._steps_zero(),
        )
        self._driver = None  # the pager's now
        try:
            pager.start()
        except _C.Error as error:
            raise NotElastic(f"kvcached: {error}; {_advice(str(error), wanted)}") from None
        return pager

    def _steps_zero(self) -> bool:
        wanted = settings().zeroing
        if wanted == "pager":
            return False
        reason = engine.writes_beside_steps(self.vllm_config)
        if reason is not None and wanted == "steps":
            say_once(
                f"kvcached: KVCACHED_ZEROING=steps is not for {reason}; the pager zeroes memory"
            )
        return reason is None

    def _terms(self, placed: Placement, limit: int, granule: int) -> _C.LeaseTerms:
        wanted = settings()
        if wanted.floor is not None and wanted.floor > limit:
            raise NotElastic(
                f"kvcached: KVCACHED_FLOOR={format_size(wanted.floor)} is above the limit of "
                f"{format_size(limit)}; lower it, or raise KVCACHED_LIMIT"
            )
        blocks = longest_request_blocks(self.vllm_config, placed.config)
        extents = -(-blocks // placed.geometry.blocks_per_extent)
        return _C.LeaseTerms(
            identity.group_of(wanted),
            identity.instance_of(self.vllm_config),
            engine="vllm",
            limit_bytes=limit,
            floor_bytes=wanted.floor,
            weight=wanted.weight,
            utilisation=wanted.gpu_utilization,
            device_limit_bytes=wanted.capacity,
            longest_bytes=extents * placed.geometry.extent_bytes(granule),
        )

    def _region(self, pager: _C.Pager) -> torch.Tensor:
        return torch.from_dlpack(
            pager.region(0, _DLPACK_DEVICE[self._device.type], self._device.index or 0)
        )

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """vLLM's execute_model(); marks the step as launched where no sampling follows."""
        if self._check is not None:
            self._check_step(self._check, scheduler_output)
        step = getattr(scheduler_output, "kvcached_step", 0)
        if self._marks is not None:
            self._begin_step(self._marks, step)
        output = super().execute_model(scheduler_output)  # type: ignore[misc]
        if self._marks is not None:
            # Up to 0.10 a step samples by itself, and a rank may have nothing to answer. Where a
            # model samples nothing, a pipeline's earlier stages answer nothing, too.
            alone = not hasattr(super(), "sample_tokens") or self._pools
            if output is not None or alone or scheduler_output.total_num_scheduled_tokens == 0:
                self._marks.mark(step)
            else:
                self._step_to_mark = step
        return output

    def _check_step(self, check: StepCheck, plan: SchedulerOutput) -> None:
        with self._failing_for_all():
            check.check(plan, getattr(plan, "kvcached_step", 0))

    def _begin_step(self, marks: LaunchMarks, step: int) -> None:
        with self._failing_for_all():
            marks.begin(step)

    @contextlib.contextmanager
    def _failing_for_all(self) -> Iterator[None]:
        """Ends the process where a rank fails of whose failures vLLM's executor does not hear: they
        are logged, and the engine would stand in the next collective until a time-out."""
        try:
            yield
        except (SanityError, _C.Error) as error:
            if self.rank == output_rank(self.vllm_config.parallel_config):
                raise
            _log.error("%s", error)
            raise SystemExit(1) from error

    @property
    def _pools(self) -> bool:
        return getattr(self.vllm_config.model_config, "runner_type", None) == "pooling"

    def sample_tokens(self, grammar_output: Any) -> Any:
        """vLLM's sample_tokens(); the step is launched behind it."""
        output = super().sample_tokens(grammar_output)  # type: ignore[misc]
        if self._marks is not None and self._step_to_mark:
            self._marks.mark(self._step_to_mark)
            self._step_to_mark = 0
        return output

    def shutdown(self) -> None:
        """vLLM's shutdown(); also stops the pager and removes the row."""
        if self._pager is not None:
            self._pager.stop()
        self._row = None
        super().shutdown()  # type: ignore[misc]


def output_rank(parallel: Any) -> int:
    """The rank whose answers vLLM's executor waits for: the first of the last pipeline stage (0.26
    v1/executor/multiproc_executor.py, MultiprocExecutor._get_output_rank)."""
    stage = parallel.tensor_parallel_size * getattr(parallel, "prefill_context_parallel_size", 1)
    return int(parallel.world_size - stage)


def _advice(error: str, wanted: Settings) -> str:
    if "a floor of" in error or "joining or leaving" in error:
        return "see kvctl list"
    if "limit" in error and wanted.limit:
        return "raise KVCACHED_LIMIT"
    return "free memory on the device; kvctl list shows who holds it"
