"""A step that must not run, or cannot, stops the engine, whichever rank finds out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvcached import _C
from kvcached_vllm.sanity import SanityError
from kvcached_vllm.worker import ElasticWorker, output_rank


class Refusing:
    """A check that finds every step wrong."""

    def check(self, plan: Any, step: int) -> None:
        raise SanityError(step, "a block without memory")


class Full:
    """Marks of a pager whose device does not even zero memory any more."""

    def begin(self, step: int) -> None:
        raise _C.Error(f"zero_on: no step {step}")


class Vanilla:
    def execute_model(self, plan: Any) -> None:
        pytest.fail("the step ran")


class Worker(ElasticWorker, Vanilla):
    """The elastic part alone."""

    def __init__(self, rank: int, tensor: int, pipeline: int) -> None:
        self.rank = rank
        self.vllm_config = SimpleNamespace(parallel_config=parallel(tensor, pipeline))
        self._check = Refusing()  # type: ignore[assignment]


def parallel(tensor: int, pipeline: int) -> SimpleNamespace:
    return SimpleNamespace(
        tensor_parallel_size=tensor,
        prefill_context_parallel_size=1,
        world_size=tensor * pipeline,
    )


PLAN: Any = SimpleNamespace(kvcached_step=3, total_num_scheduled_tokens=1)


@pytest.mark.parametrize(("tensor", "pipeline", "heard"), [(1, 1, 0), (2, 1, 0), (1, 2, 1)])
def test_the_rank_that_vllm_listens_to_says_what_is_wrong(
    tensor: int, pipeline: int, heard: int
) -> None:
    assert output_rank(parallel(tensor, pipeline)) == heard
    with pytest.raises(SanityError, match="step 3: a block without memory"):
        Worker(heard, tensor, pipeline).execute_model(PLAN)


@pytest.mark.parametrize(("tensor", "pipeline", "unheard"), [(2, 1, 1), (1, 2, 0)])
def test_another_rank_ends_its_process_and_with_it_the_engine(
    tensor: int, pipeline: int, unheard: int
) -> None:
    with pytest.raises(SystemExit):
        Worker(unheard, tensor, pipeline).execute_model(PLAN)


@pytest.mark.parametrize(("rank", "raised"), [(0, _C.Error), (1, SystemExit)])
def test_so_does_a_rank_that_cannot_zero_what_the_step_needs(
    rank: int, raised: type[BaseException]
) -> None:
    worker = Worker(rank, 2, 1)
    worker._check = None
    worker._marks = Full()  # type: ignore[assignment]
    with pytest.raises(raised):
        worker.execute_model(PLAN)
