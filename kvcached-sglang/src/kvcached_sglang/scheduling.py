"""Hooks on SGLang's scheduler: before a batch is formed, around its launch, and in the sum of its
leak check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import EvictParams

from kvcached import _C
from kvcached.policy import PolicyRunner
from kvcached.telemetry.reporter import EventReporter
from kvcached_sglang import allocators, identity, metrics
from kvcached_sglang.agreement import Agreement, least_of
from kvcached_sglang.hybrid_keeper import FullKeeper, HybridKeeper, WindowKeeper
from kvcached_sglang.keeper import MemoryKeeper
from kvcached_sglang.launches import LaunchMarks
from kvcached_sglang.pipeline import GroupLine, StageRounds
from kvcached_sglang.pools import memories_of_this_process, settings
from kvcached_sglang.sanity import StepCheck
from kvcached_sglang.stage_keeper import StageKeeper, among_stages
from kvcached_sglang.working_memory import WorkingMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvcached_sglang.memory import RankMemory
    from kvcached_sglang.page_supply import PageSupply


class _Tended:
    """What belongs to this process's scheduler."""

    def __init__(
        self, scheduler: Any, supplies: list[PageSupply], memories: list[RankMemory]
    ) -> None:
        place = memories[0].place
        wanted = settings()
        reporter = None
        policy = None
        if place.rank == 0:
            paths = [
                str(identity.row_path(wanted, place.instance, row)) for row in range(place.rows)
            ]
            reporter = EventReporter(wanted, paths, identity.group_of(wanted), place.instance)
            ledgers = [_C.Row.attach(path).describe()["ledger"] for path in paths]
            policy = PolicyRunner.installed(ledgers)
            metrics.publish(scheduler.server_args, wanted, place)
        device = memories[0].region.device
        self.stream = scheduler.forward_stream if scheduler.enable_overlap else None
        on_gpu = device.type == "cuda"
        self.keeper = _keeper(
            scheduler,
            supplies,
            place.ranks,
            wanted.max_cached_tokens,
            reporter=reporter,
            policy=policy,
            working=WorkingMemory(memories[0].pager, device, self.stream) if on_gpu else None,
        )
        self.supplies = supplies
        self.marks = [LaunchMarks(memory.pager, device) for memory in memories]
        self.checks: list[StepCheck] = []
        if wanted.sanity_check:
            self.checks = _checks(scheduler, supplies, memories)


def agreement_of(scheduler: Any) -> Agreement:
    """Among the ranks that share this scheduler's requests: with data-parallel attention, not all
    of a tensor-parallel group."""
    # SGLang 0.5.9 and 0.5.10 are not served where the two differ.
    group = getattr(scheduler, "attn_tp_cpu_group", scheduler.tp_cpu_group)
    return Agreement(least_of(group), torch.distributed.get_world_size(group))


def _keeper(
    scheduler: Any, supplies: list[PageSupply], ranks: int, cap: int, **options: Any
) -> MemoryKeeper | HybridKeeper:
    stages = getattr(scheduler.server_args, "pp_size", 1)
    if stages > 1:
        # The ranks of all stages that have this rank's place in theirs.
        column = scheduler.pp_group
        rounds = StageRounds(
            GroupLine(column.cpu_group, column.ranks),
            column.rank_in_group,
            stages,
            least_of(scheduler.tp_cpu_group) if ranks > stages else None,
        )
        return StageKeeper(
            scheduler, supplies[0], among_stages(ranks), _evict, cap, rounds=rounds, **options
        )
    agreement = agreement_of(scheduler)
    if len(supplies) == 1:
        return MemoryKeeper(scheduler, supplies[0], agreement, _evict, cap, **options)
    return HybridKeeper(
        FullKeeper(scheduler, supplies[0], agreement, _evict, cap, **options),
        WindowKeeper(scheduler, supplies[1], agreement, _evict_window, cap),
    )


def _checks(
    scheduler: Any, supplies: list[PageSupply], memories: list[RankMemory]
) -> list[StepCheck]:
    # A window's slots are found by those of full attention.
    slots_by = [
        None,
        getattr(scheduler.token_to_kv_pool_allocator, "full_to_swa_index_mapping", None),
    ]
    return [
        StepCheck(memory.pager, _C.Row.attach(memory.path), supply.page_size, slots)
        for memory, supply, slots in zip(memories, supplies, slots_by, strict=False)
    ]


_tended: dict[int, _Tended] = {}
"""By the scheduler's id: there is one for as long as the process lives."""


def _of(scheduler: Any) -> _Tended | None:
    found = _tended.get(id(scheduler))
    if found is None:
        supplies = allocators.supplies_of(scheduler.token_to_kv_pool_allocator)
        memories = memories_of_this_process()
        if not supplies or not memories:
            return None
        found = _tended[id(scheduler)] = _Tended(scheduler, supplies, memories)
    return found


def _evict(tree_cache: Any, tokens: int) -> None:
    tree_cache.evict(EvictParams(num_tokens=tokens))


def _evict_window(tree_cache: Any, tokens: int) -> None:
    tree_cache.evict(EvictParams(num_tokens=0, swa_num_tokens=tokens))


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
    for check in tended.checks:
        check.check(batch, tended.supplies[0].step + 1)
    result = original(scheduler, batch, *args, **kwargs)
    for supply, marks in zip(tended.supplies, tended.marks, strict=True):
        marks.mark(supply.launched(), tended.stream)
    return result


def session_held_tokens(result: int, observer: Any) -> int:
    """AFTER ``session_held_tokens()``, an observer's or a scheduler's: tokens that are withheld
    count as held by somebody else, so that SGLang's check still compares all that is used with all
    that is owned."""
    supplies = allocators.supplies_of(observer.token_to_kv_pool_allocator)
    return result + supplies[0].withheld_tokens if supplies else result


def session_held_swa_tokens(result: int, observer: Any) -> int:
    """AFTER ``session_held_swa_tokens()``: the same for sliding windows."""
    supplies = allocators.supplies_of(observer.token_to_kv_pool_allocator)
    return result + supplies[1].withheld_tokens if len(supplies) > 1 else result
