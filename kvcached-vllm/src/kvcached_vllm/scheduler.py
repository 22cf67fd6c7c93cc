"""vLLM's schedulers over an elastic block pool."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.scheduler import Scheduler

from kvcached import _C
from kvcached.policy import PolicyRunner
from kvcached.sizes import format_size
from kvcached.telemetry.reporter import EventReporter
from kvcached_vllm import NotElastic, engine, identity, start_lines
from kvcached_vllm.attach import settings
from kvcached_vllm.connectors import TransferFence, transfer_fence
from kvcached_vllm.coordinator import Coordinators, elastic_coordinator
from kvcached_vllm.extent_layout import BlockIds, ids_of
from kvcached_vllm.kv_layout import longest_request_blocks
from kvcached_vllm.lookahead import Lookahead
from kvcached_vllm.memory_thread import MemoryThread
from kvcached_vllm.sanity import check_owners
from kvcached_vllm.supply import BlockSupply

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request, RequestStatus

    from kvcached._C import RowDescription

_log = logging.getLogger("vllm.kvcached")

#: Where a step's number rides on vLLM's step plan to the workers.
STEP_ATTRIBUTE = "kvcached_step"
#: For how many steps the blocks of running requests are fetched ahead. The pager answers within one
#: or two steps even where all requests fill theirs at once.
_STEPS_AHEAD = 5
#: For how many they are fetched instead once some are missing, where one driver call commits
#: several extents: there a call costs about the same whatever its size.
_STEPS_OF_REFILL = 16
#: Seconds between lines about an engine that waits for memory.
_STARVED_LOG_INTERVAL = 10.0


class _Elastic:
    """Mixed into a vLLM scheduler. Without rows of elastic workers it changes nothing."""

    # What vLLM's Scheduler has.
    vllm_config: Any
    kv_cache_config: Any
    kv_cache_manager: Any
    requests: dict[str, Request]
    max_model_len: int
    max_num_running_reqs: int
    max_num_scheduled_tokens: int
    block_size: int
    running: list[Request]
    waiting: Any

    _supply: BlockSupply | None = None
    _memory: MemoryThread | None = None
    _lookahead: Lookahead | None = None
    """None where a running request may take more than a token in the next step."""
    _transfers: TransferFence | None = None
    _ids: BlockIds
    _refills = False
    """Whether memory is ordered for many steps at once."""
    _starved_logged = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Held by whoever touches blocks: a step, an abort, or the thread that answers neighbours
        # while no step runs.
        self.memory_lock = threading.RLock()
        self._supply = self._attach()
        if self._supply is not None:
            self._transfers = transfer_fence(self)
        if self._supply is not None and self._supply.pool.has_leases:
            self._memory = self._start_memory_thread(self._supply)

    def _attach(self) -> BlockSupply | None:
        wanted = settings()
        world = self.vllm_config.parallel_config.world_size
        paths = self._row_paths()
        reason = _reason_of(paths)
        if reason is not None:
            if wanted.required:
                raise NotElastic(f"kvcached: KVCACHED_REQUIRED=true, but: {reason}")
            _log.warning("kvcached: vanilla: %s", reason)
            return None
        rows = [_C.Row.attach(path).describe() for path in paths]
        if len({row["layout"] for row in rows}) > 1:
            # As on GPUs of several kinds: a block's id would be another one on each.
            raise NotElastic(
                "kvcached: the ranks have laid out their caches in several ways; set "
                "KVCACHED_LAYOUT=layer"
            )
        # Of the rank whose limit holds the fewest blocks: a pipeline's stages may differ.
        facts = min(rows, key=_limit_blocks)
        page = facts["max_unit_extents"]  # what one driver call commits
        self._refills = page > 1
        pool = _C.Pool(paths, wanted.min_reserved_pages * page, wanted.max_reserved_pages * page)
        self._check_longest_request(facts)
        manager = self.kv_cache_manager
        limit_blocks = _limit_blocks(facts)
        # A share of what can be granted, not of the address space.
        manager.watermark_blocks = int(engine.watermark(self.vllm_config) * limit_blocks)
        cap = wanted.max_cached_tokens
        self._ids = ids_of(facts, self.kv_cache_config)
        supply = BlockSupply(
            pool,
            manager.block_pool,
            self.requests,
            manager.watermark_blocks,
            None if cap < 0 else _blocks_of_tokens(self.kv_cache_config, cap),
            self._ids,
        )
        self._coordinators = Coordinators(
            vanilla=manager.coordinator,
            elastic=elastic_coordinator(manager.coordinator, supply),
        )
        _log.info(start_lines.cache(facts, self.block_size, world, wanted.sanity_check))
        _log.info(start_lines.lease(facts))
        return supply

    def _start_memory_thread(self, supply: BlockSupply) -> MemoryThread:
        wanted = settings()
        paths = self._row_paths()
        reporter = EventReporter(
            wanted, paths, identity.group_of(wanted), identity.instance_of(self.vllm_config)
        )
        ledgers = [_C.Row.attach(path).describe()["ledger"] for path in paths]
        thread = MemoryThread(self, supply, reporter, PolicyRunner.installed(ledgers))
        thread.start()
        return thread

    def _row_paths(self) -> list[str]:
        world = self.vllm_config.parallel_config.world_size
        return [str(identity.row_path(self.vllm_config, settings(), rank)) for rank in range(world)]

    def _check_longest_request(self, facts: RowDescription) -> None:
        # vLLM's own check compared with the address space.
        needed = longest_request_blocks(self.vllm_config, self.kv_cache_config)
        if needed > _limit_blocks(facts):
            raise NotElastic(
                f"kvcached: one request of max_model_len={self.max_model_len} needs {needed} "
                f"blocks, and the limit of {format_size(facts['limit_bytes'])} holds "
                f"{_limit_blocks(facts)}; raise KVCACHED_LIMIT or the engine's own KV cache "
                "size, or lower --max-model-len"
            )

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """vLLM's schedule(), as a numbered step."""
        supply = self._supply
        if supply is None:
            return super().schedule(*args, **kwargs)  # type: ignore[misc]
        with self.memory_lock:
            if self.waiting:
                step = supply.begin_step(self._blocks_to_admit(), self._blocks_of_oldest())
                supply.pool.demand(self._blocks_of_prompts())
            else:
                step = supply.begin_step(0, self._blocks_of_oldest())
            foreseen = self._foreseen(supply)
            chosen = self._coordinators
            self.kv_cache_manager.coordinator = chosen.vanilla if foreseen else chosen.elastic
            output = super().schedule(*args, **kwargs)  # type: ignore[misc]
            setattr(output, STEP_ATTRIBUTE, step)
            if settings().sanity_check:
                names = [request.request_id for request in self.running]
                check_owners(step, names, self.kv_cache_manager, self._ids)
            decoding = output.total_num_scheduled_tokens == len(output.num_scheduled_tokens)
            steps = self._look_ahead(output, foreseen)
            groups = len(self.kv_cache_config.kv_cache_groups)  # a block in each
            ahead = steps.within(_STEPS_AHEAD) * groups
            to_admit = prompts = 0
            if self.waiting or not decoding:
                to_admit, prompts = self._blocks_to_admit(), self._blocks_of_prompts()
            refill = steps.within(_STEPS_OF_REFILL) * groups if self._refills else 0
            if self._transfers is not None:
                self._transfers.planned(step)
            supply.end_step(to_admit + ahead, to_admit + refill, prompts)
            if output.total_num_scheduled_tokens == 0 and self._starved(supply):
                supply.pause()
        return output

    def _inflight_prefill_reserved_blocks(self) -> int:
        """vLLM's count of the blocks that prompts under way still take, which a load from elsewhere
        must leave to them. It is taken from what the load asks for, where it can be set against
        what is still to be had."""
        if self._supply is None:
            return super()._inflight_prefill_reserved_blocks()  # type: ignore[misc,no-any-return]
        manager, elastic = self.kv_cache_manager, self.kv_cache_manager.coordinator
        manager.coordinator = self._coordinators.vanilla  # it asks how much, and takes nothing
        try:
            reserved: int = super()._inflight_prefill_reserved_blocks()  # type: ignore[misc]
        finally:
            manager.coordinator = elastic
        self._supply.leave(reserved)
        return 0

    def _foreseen(self, supply: BlockSupply) -> bool:
        """Whether all that this step can take is there: then nobody need be asked on the way."""
        ahead = self._lookahead
        if ahead is None or (self._slots > 0 and engine.anybody_waits(self)):
            return False
        return ahead.next_step <= supply.pool.num_unhashed

    def _look_ahead(self, output: SchedulerOutput, foreseen: bool) -> Lookahead:
        """What the running requests will take."""
        tokens, parts = output.total_num_scheduled_tokens, len(output.num_scheduled_tokens)
        kept = self._lookahead
        if kept is not None and foreseen and not kept.stale and tokens == parts > 0:
            kept.pass_step()  # nobody can have joined
            return kept
        ahead = Lookahead(self.running, self.block_size)
        # Nor may somebody stand back in the middle of a prompt.
        complete = (
            self._countable
            and tokens == parts > 0
            and not any(
                request.num_tokens - request.num_computed_tokens > 1 for request in self.running
            )
        )
        self._lookahead = ahead if complete else None
        return ahead

    @cached_property
    def _countable(self) -> bool:
        """Whether a request that decodes takes one block every `block_size` steps: not where it
        may take several tokens at once, has blocks of several kinds, or sits a step out while
        another stage of a pipeline works for it."""
        groups = self.kv_cache_config.kv_cache_groups
        return (
            len(groups) == 1
            and not engine.has_states(self.kv_cache_config)
            and groups[0].kv_cache_spec.block_size == self.block_size
            and self.vllm_config.parallel_config.pipeline_parallel_size == 1
            and self.vllm_config.speculative_config is None
        )

    @property
    def _slots(self) -> int:
        """How many requests a step may admit."""
        return engine.most_requests(self) - len(self.running)

    def _blocks_of_prompts(self) -> int:
        """Blocks that prompts still take: of running requests, and of waiting ones for which there
        is room in the batch. Prefix hits are not deducted."""
        size = self.block_size
        blocks: int = sum(
            -(-(request.num_tokens - request.num_computed_tokens) // size)
            for request in self.running
            if request.num_tokens - request.num_computed_tokens > 1
        )
        slots = self._slots
        if slots > 0 and isinstance(self.waiting, deque):
            blocks += sum(-(-request.num_tokens // size) for request in islice(self.waiting, slots))
        return blocks

    def _blocks_of_oldest(self) -> int:
        """Blocks of the running request that vLLM would preempt last."""
        if not self.running:
            return 0
        tokens: int = self.running[0].num_tokens
        return -(-tokens // self.block_size)

    def _blocks_to_admit(self) -> int:
        """Blocks that a step would give to waiting requests, prefix hits not deducted."""
        slots = self._slots
        # A priority queue would sort itself to be looked through.
        if slots <= 0 or not isinstance(self.waiting, deque):
            return 0
        blocks = 0
        tokens = self.max_num_scheduled_tokens
        for request in islice(self.waiting, slots):
            fresh = min(request.num_tokens - request.num_computed_tokens, tokens)
            blocks += -(-fresh // self.block_size)
            tokens -= fresh
            if tokens <= 0:
                break
        return blocks

    def _starved(self, supply: BlockSupply) -> bool:
        # Requests wait for other things, too, such as a grammar that is being compiled.
        stuck = not self.running and supply.short
        if not (stuck or supply.pool.denied or supply.pool.wanted_extents):
            return False
        if self.get_num_unfinished_requests() == 0:  # type: ignore[attr-defined]
            return False
        now = time.monotonic()
        if (stuck or supply.pool.denied) and now - self._starved_logged > _STARVED_LOG_INTERVAL:
            self._starved_logged = now
            _log.warning(
                "kvcached: requests wait for memory: %d blocks committed, the device or the "
                "limit gives no more",
                supply.pool.num_usable,
            )
        return True

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> Any:
        """vLLM's update_from_output(); memory goes back with the next step's plan, or here where no
        step follows."""
        with self.memory_lock:
            result = super().update_from_output(  # type: ignore[misc]
                scheduler_output, model_runner_output
            )
            if self._supply is not None:
                step = getattr(scheduler_output, STEP_ATTRIBUTE)
                if self._transfers is not None:
                    step = self._transfers.settled(step)
                self._supply.finish_step(step, steps_follow=not self.idle)
                self._note_idle()
        return result

    @property
    def idle(self) -> bool:
        """Whether there is no request at all."""
        return not self.requests

    def _note_idle(self) -> None:
        if self._memory is not None and self.idle:
            self._memory.wake()

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> Any:
        """vLLM's finish_requests(): an abort gives memory back too."""
        with self.memory_lock:
            result = super().finish_requests(  # type: ignore[misc]
                request_ids, finished_status
            )
            if self._supply is not None:
                self._supply.tidy(idle=False)
                self._note_idle()
        return result

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """vLLM's reset_prefix_cache(): the blocks of dropped prefixes are free."""
        with self.memory_lock:
            if self._transfers is not None:
                self._transfers.reset()
            done: bool = super().reset_prefix_cache(*args, **kwargs)  # type: ignore[misc]
            if self._supply is not None and done:
                self._supply.forget_prefixes()
                self._supply.tidy(idle=False)
                self._note_idle()
        return done

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """vLLM's statistics, with the cache's use as a share of what it can become."""
        stats = super().make_stats(*args, **kwargs)  # type: ignore[misc]
        if stats is not None and self._supply is not None:
            stats.kv_cache_usage = self._supply.usage
        return stats

    def get_kv_cache_usage(self) -> float:
        """The cache's use as a share of what it can become."""
        if self._supply is not None:
            return self._supply.usage
        return super().get_kv_cache_usage()  # type: ignore[misc,no-any-return]

    def shutdown(self) -> None:
        """vLLM's shutdown(); also removes the rows of workers that were killed."""
        if self._memory is not None:
            self._memory.stop()
        super().shutdown()  # type: ignore[misc]
        if self._supply is not None:
            self._supply = None
            directory = str(identity.directory(settings()))
            _C.remove_dead_rows(directory)
            _C.remove_dead_ledgers(directory)


def _reason_of(paths: list[str]) -> str | None:
    """Why a worker runs vanilla, or None. Raises NotElastic where the ranks disagree, or are
    not ours at all."""
    rows = []
    for path in paths:
        try:
            rows.append(_C.Row.attach(path).describe())
        except _C.Error as error:
            raise NotElastic(
                f"kvcached: the scheduler is elastic, but a worker is not: {error}; pass both "
                "--scheduler-cls and --worker-cls, or neither"
            ) from None
    reasons = {row["reason"] for row in rows if row["mode"] == "vanilla"}
    if not reasons:
        return None
    if any(row["mode"] == "elastic" for row in rows):
        raise NotElastic(
            f"kvcached: some ranks are elastic and some are not ({reasons.pop()}); start with "
            "ENABLE_KVCACHED=false"
        )
    return str(reasons.pop())


def _limit_blocks(facts: RowDescription) -> int:
    if not facts["limit_bytes"]:
        return int(facts["num_blocks"])
    extents = facts["limit_bytes"] // facts["extent_bytes"]
    return int(min(facts["num_blocks"], extents * facts["blocks_per_extent"]))


def _blocks_of_tokens(config: Any, tokens: int) -> int:
    """Blocks that so many tokens of finished prefixes take, in every KV cache group one of each."""
    return sum(tokens // group.kv_cache_spec.block_size for group in config.kv_cache_groups)


class ElasticScheduler(_Elastic, Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, elastic."""


class ElasticAsyncScheduler(_Elastic, engine.asynchronous_scheduler()):  # type: ignore[misc]
    """vLLM's asynchronous scheduler, elastic."""
