"""Hooks on SGLang's scheduler: before a batch is formed, around its launch, and in the sum of its
leak check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.base_prefix_cache import EvictParams

from kvcached import _C
from kvcached.policy import PolicyRunner
from kvcached.telemetry.reporter import EventReporter
from kvcached_sglang import allocators, identity, metrics
from kvcached_sglang.agreement import Agreement, least_of
from kvcached_sglang.keeper import MemoryKeeper
from kvcached_sglang.launches import LaunchMarks
from kvcached_sglang.pools import memory_of_this_process, settings
from kvcached_sglang.pipeline import GroupLine, StageRounds
from kvcached_sglang.sanity import StepCheck
from kvcached_sglang.stage_keeper import StageKeeper, among_stages
from kvcached_sglang.working_memory import WorkingMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvcached_sglang.memory import RankMemory
    from kvcached_sglang.page_supply import PageSupply


class _Tended:
    """What belongs to this process's scheduler."""

    def __init__(self, scheduler: Any, supply: PageSupply, memory: RankMemory) -> None:
        place = memory.place
        wanted = settings()
        reporter = None
        policy = None
        if place.rank == 0:
            paths = [
                str(identity.row_path(wanted, place.instance, rank)) for rank in range(place.ranks)
            ]
            reporter = EventReporter(wanted, paths, identity.group_of(wanted), place.instance)
            ledgers = [_C.Row.attach(path).describe()["ledger"] for path in paths]
            policy = PolicyRunner.installed(ledgers)
            metrics.publish(scheduler.server_args, wanted, place)
        device = memory.region.device
        self.stream = scheduler.forward_stream if scheduler.enable_overlap else None
        on_gpu = device.type == "cuda"
        self.keeper = _keeper(
            scheduler,
            supply,
            place.ranks,
            max_cached_tokens=wanted.max_cached_tokens,
            reporter=reporter,
            policy=policy,
            working=WorkingMemory(memory.pager, device, self.stream) if on_gpu else None,
        )
        self.supply = supply
        self.marks = LaunchMarks(memory.pager, device)
        self.check = None
        if wanted.sanity_check:
            self.check = StepCheck(memory.pager, _C.Row.attach(memory.path), supply.page_size)


def _keeper(scheduler: Any, supply: PageSupply, ranks: int, **options: Any) -> MemoryKeeper:
    stages = getattr(scheduler.server_args, "pp_size", 1)
    least = least_of(scheduler.tp_cpu_group)
    if stages == 1:
        return MemoryKeeper(scheduler, supply, Agreement(least, ranks), _evict, **options)
    # The ranks of all stages that have this rank's place in theirs.
    column = scheduler.pp_group
    rounds = StageRounds(
        GroupLine(column.cpu_group, column.ranks),
        column.rank_in_group,
        stages,
        least if ranks > stages else None,
    )
    return StageKeeper(scheduler, supply, among_stages(ranks), _evict, rounds=rounds, **options)


_tended: dict[int, _Tended] = {}
"""By the scheduler's id: there is one for as long as the process lives."""


def _of(scheduler: Any) -> _Tended | None:
    found = _tended.get(id(scheduler))
    if found is None:
        supply = allocators.supply_of(scheduler.token_to_kv_pool_allocator)
        memory = memory_of_this_process()
        if supply is None or memory is None:
            return None
        found = _tended[id(scheduler)] = _Tended(scheduler, supply, memory)
    return found


def _evict(tree_cache: Any, tokens: int) -> None:
    tree_cache.evict(EvictParams(num_tokens=tokens))


def before_batch(scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE ``get_next_batch_to_run()``."""
    tended = _of(scheduler)
    if tended is not None:
        tended.keeper.before_batch()


def run_batch(
    original: Callable[..., Any], scheduler: Any, batch: Any, *args: Any, **kwargs: Any
) -> Any:
    """AROUND ``run_batch()``: what is freed from here on may still be in the batch's hands."""
    tended = _of(scheduler)
    if tended is None:
        return original(scheduler, batch, *args, **kwargs)
    if tended.check is not None:
        tended.check.check(batch, tended.supply.step + 1)
    result = original(scheduler, batch, *args, **kwargs)
    tended.marks.mark(tended.supply.launched(), tended.stream)
    return result


def session_held_tokens(result: int, observer: Any) -> int:
    """AFTER ``session_held_tokens()``, an observer's or a scheduler's: tokens that are withheld
    count as held by somebody else, so that SGLang's check still compares all that is used with all
    that is owned."""
    supply = allocators.supply_of(observer.token_to_kv_pool_allocator)
    return result if supply is None else result + supply.withheld_tokens
