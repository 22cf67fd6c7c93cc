"""Whether vLLM's steps zero fresh memory, or the pager does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from kvcached_vllm.worker import ElasticWorker


def worker_of(connector: object = None, micro_batches: bool = False) -> ElasticWorker:
    """A worker that knows of its configuration what is asked here."""
    worker = ElasticWorker()
    parallel = SimpleNamespace(use_ubatching=micro_batches)
    worker.vllm_config = SimpleNamespace(kv_transfer_config=connector, parallel_config=parallel)
    return worker


@pytest.mark.parametrize(
    ("wanted", "beside", "steps", "said"),
    [
        (None, {}, True, ""),
        ("auto", {"connector": object()}, False, ""),
        ("auto", {"micro_batches": True}, False, ""),
        ("steps", {}, True, ""),
        ("steps", {"connector": object()}, False, "is not for a KV connector"),
        ("steps", {"micro_batches": True}, False, "is not for micro-batches"),
        ("pager", {}, False, ""),
    ],
)
def test_steps_zero_where_nothing_else_writes_beside_them(
    set_environment: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wanted: str | None,
    beside: dict[str, Any],
    steps: bool,
    said: str,
) -> None:
    set_environment(**({"KVCACHED_ZEROING": wanted} if wanted else {}))
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    assert worker_of(**beside)._steps_zero() is steps
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)
