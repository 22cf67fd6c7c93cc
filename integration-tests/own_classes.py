"""A scheduler and a worker of a user's own, as --scheduler-cls and --worker-cls name them."""

from __future__ import annotations

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.worker.cpu_worker import CPUWorker


class OwnScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler under another name."""


class OwnWorker(CPUWorker):  # type: ignore[misc]
    """vLLM's worker under another name.

    The default's own name would not do: vLLM writes it into its configuration itself, so
    that a choice of it cannot be told from none.
    """
