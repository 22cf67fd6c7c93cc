"""vLLM's schedulers, admitting in each step as many requests as another engine did.

In bfloat16 an answer depends on who shared its batches. An elastic engine whose memory comes a step
later than vanilla's admits a request a step later; to compare tokens, vanilla is made to do so too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler


class _Replayed:
    #: Requests that a step adds to those that run, step by step; what comes after is vLLM's choice.
    admissions: ClassVar[Sequence[int]] = ()

    # What vLLM's Scheduler has.
    running: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What bounds admission: 0.32 has a bound of its own for that.
        names = ("max_num_active_reqs", "max_num_running_reqs")
        self._bound = next(name for name in names if hasattr(self, name))
        self._most = getattr(self, self._bound)
        self._left = iter(self.admissions)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's schedule() with less room in the batch."""
        admitted = next(self._left, self._most)
        # Less than what runs already would not be believed.
        room = len(self.running) + max(0, admitted)
        setattr(self, self._bound, min(self._most, room))
        return super().schedule(*args, **kwargs)  # type: ignore[misc]


class ReplayedScheduler(_Replayed, Scheduler):  # type: ignore[misc]
    """The synchronous one."""


class ReplayedAsyncScheduler(_Replayed, AsyncScheduler):  # type: ignore[misc]
    """The asynchronous one."""


def of(scheduler: str) -> type[Any]:
    """The class that stands for another engine's scheduler, by that one's name."""
    return ReplayedAsyncScheduler if "Async" in scheduler else ReplayedScheduler


def replay(admissions: Sequence[int]) -> None:
    """Sets what schedulers made from now on admit."""
    _Replayed.admissions = tuple(admissions)
