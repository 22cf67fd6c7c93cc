"""Which device a rank's driver is of."""

from __future__ import annotations

import pytest
import torch

from kvcached import hooks
from kvcached_sglang import pools


@pytest.mark.parametrize("device", ["cuda", torch.device("cuda"), "cuda:1"])
def test_a_rank_maps_memory_of_its_own_gpu(device: object, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(hooks, "driver_for", lambda kind, ordinal=0: asked.append((kind, ordinal)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    pools.driver_of(device)
    assert asked == [("cuda", 1)]


def test_a_cpus_memory_has_no_number() -> None:
    assert pools.driver_of("cpu").device_id
