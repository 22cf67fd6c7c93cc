"""KV connectors beside an elastic cache: which are covered, and how long those that copy in the
background keep memory where it is.

vLLM's offloading connector copies blocks of finished requests when vLLM has freed them already. It
keeps a block that is handed out again from being written to before its copy is done, and nobody
else knows of the copies: a block whose memory goes would be read where nothing is. Of a window's
blocks it may order the copy many steps after they were freed, so that it is covered beside full
attention alone.
"""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any

from kvcached_vllm import NotElastic, seam_checks, sources

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheSpec

# Touches the blocks of a step's plan alone, and while that step runs. On a GPU it writes into a
# reshaped copy where layers are laid together (0.26).
_EXAMPLE = "ExampleConnector"
# Copies in the background. Connectors that are not covered do so in ways of their own, or register
# all of the cache with a network card, which needs memory everywhere.
_OFFLOADING = "OffloadingConnector"


def reason(vllm_config: VllmConfig, device: str) -> str | None:
    """Why the connector of this configuration is not covered on this device ("cpu" or "cuda"), or
    None, also where there is none."""
    # vLLM makes a connector of it, and only after a platform was asked.
    if getattr(vllm_config.cache_config, "kv_offloading_size", None):
        return "a KV connector for --kv-offloading-size is not covered"
    wish = vllm_config.kv_transfer_config
    if wish is None:
        return None
    name = wish.kv_connector
    # A module of the user's may call its class as it likes. Neither was run on a GPU.
    covered = device == "cpu" and not wish.kv_connector_module_path
    if covered and (name == _EXAMPLE or (name == _OFFLOADING and _numbers_its_jobs() is None)):
        return None
    return f"the KV connector {name} is not covered"


def kinds_reason(vllm_config: VllmConfig, specs: Iterable[KVCacheSpec]) -> str | None:
    """Why the connector is not covered beside these layers' caches, or None."""
    wish = vllm_config.kv_transfer_config
    if wish is None or wish.kv_connector != _OFFLOADING:
        return None
    kinds = {type(spec).__name__ for spec in specs} - {"FullAttentionSpec"}
    return f"the KV connector {_OFFLOADING} is not covered beside {min(kinds)}" if kinds else None


@cache
def _numbers_its_jobs() -> str | None:
    """What is not as TransferFence wants it in the offloading connector, or None. The last of them
    came with copies of no more of an aborted request than it had computed."""
    folder = "distributed/kv_transfer/kv_connector/v1"
    jobs = f"{folder}/offloading/scheduler.py"
    checks = (
        seam_checks.has(
            f"{folder}/offloading_connector.py", "OffloadingConnector", "connector_scheduler"
        ),
        seam_checks.has(
            jobs,
            "OffloadingConnectorScheduler",
            *("_jobs", "_job_counter"),
            has_pending_push_work=(),
        ),
        seam_checks.has(jobs, "TransferJobStatus", "is_store"),
        seam_checks.has(jobs, "RequestOffloadState", "finished_signaled"),
    )
    found = sources.installed()
    return next((wrong for check in checks if (wrong := check(found)) is not None), None)


def transfer_fence(scheduler: Any) -> TransferFence | None:
    """For an elastic scheduler with the offloading connector. Raises NotElastic where that is not
    what it was known to be."""
    wish = scheduler.vllm_config.kv_transfer_config
    if wish is None or wish.kv_connector != _OFFLOADING:
        return None
    side = getattr(scheduler.connector, "connector_scheduler", None)
    if side is None:
        raise NotElastic(
            f"kvcached: {_OFFLOADING} does not say what it copies; start with ENABLE_KVCACHED=false"
        )
    return TransferFence(scheduler, side)


class TransferFence:
    """Until which step what was freed may go, while copies in the background read it.

    Of full attention, whose blocks are freed when their request ends or is preempted. A copy of a
    finished request's blocks is ordered by the plan of the step after it finished. So one that is
    ordered by step j reads nothing that was freed before step j - 1, and what is freed in step s
    may be copied until the plan of s + 1 is made and all copies ordered up to there are done. The
    connector numbers its jobs in their order, and forgets those that are done.
    """

    def __init__(self, scheduler: Any, side: Any) -> None:
        """`side`: the connector's half on the scheduler's side."""
        self._scheduler = scheduler
        self._side = side
        # (step, jobs made up to its plan), of steps whose jobs are not all done.
        self._plans: deque[tuple[int, int]] = deque()
        self._planned = 0
        self._flushed_by = 0
        self._settled = 0

    def planned(self, step: int) -> None:
        """The plan of a step is made."""
        self._planned = step
        made = self._side._job_counter
        if not self._plans or made > self._plans[-1][1]:
            self._plans.append((step, made))

    def reset(self) -> None:
        """The connector is about to forget its jobs; the next step's plan has workers wait for
        them."""
        if self._oldest() is not None:
            self._flushed_by = self._planned + 1

    def settled(self, processed: int) -> int:
        """The last step of which nothing that was freed is read any more, given the last one that
        has been processed. Never less than before."""
        oldest = self._oldest()
        while self._plans and (oldest is None or self._plans[0][1] <= oldest):
            self._plans.popleft()
        if processed < self._flushed_by:
            return self._settled
        bound = processed if self._idle(oldest) else min(processed, self._planned - 1)
        if oldest is not None and self._plans:
            bound = min(bound, self._plans[0][0] - 2)
        self._settled = max(self._settled, bound)
        return self._settled

    def _oldest(self) -> int | None:
        """The number of the oldest copy out of the cache that is not done; copies into it go to
        blocks that their request holds."""
        return next((number for number, job in self._side._jobs.items() if job.is_store), None)

    def _idle(self, oldest: int | None) -> bool:
        """Whether no request is there whose end, or past end, another copy may follow."""
        waits = self._scheduler.requests or self._scheduler.finished_req_ids
        return oldest is None and not waits
