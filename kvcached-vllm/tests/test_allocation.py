"""Which call of PyTorch is given our memory."""

from __future__ import annotations

import pytest
import torch

from kvcached_vllm.allocation import RegionForZeros

SIZE = 4096
CPU = torch.device("cpu")


@pytest.fixture
def region() -> torch.Tensor:
    return torch.full((SIZE,), 7, dtype=torch.int8)


@pytest.fixture
def mode(region: torch.Tensor) -> RegionForZeros:
    return RegionForZeros([(SIZE, lambda: region)], CPU)


@pytest.mark.parametrize("device", ["cpu", CPU, None])
def test_zeros_of_exactly_the_size_are_the_region(
    mode: RegionForZeros, region: torch.Tensor, device: object
) -> None:
    with mode:
        keywords = {} if device is None else {"device": device}
        made = torch.zeros(SIZE, dtype=torch.int8, **keywords)
    assert made.data_ptr() == region.data_ptr()
    assert mode.unused == []


def test_the_region_is_given_once(mode: RegionForZeros, region: torch.Tensor) -> None:
    with mode:
        torch.zeros(SIZE, dtype=torch.int8, device="cpu")
        second = torch.zeros(SIZE, dtype=torch.int8, device="cpu")
    assert second.data_ptr() != region.data_ptr()
    assert not second.any()


def test_allocations_of_one_size_are_given_in_order() -> None:
    regions = [torch.full((SIZE,), value, dtype=torch.int8) for value in (1, 2)]
    mode = RegionForZeros([(SIZE, lambda: regions[0]), (SIZE, lambda: regions[1])], CPU)
    with mode:
        made = [torch.zeros(SIZE, dtype=torch.int8) for _ in regions]
    assert [tensor.data_ptr() for tensor in made] == [region.data_ptr() for region in regions]
    assert mode.unused == []


def test_other_zeros_pass(mode: RegionForZeros) -> None:
    with mode:
        others = [
            torch.zeros(SIZE - 1, dtype=torch.int8),
            torch.zeros(SIZE + 1, dtype=torch.int8),
            torch.zeros(SIZE),
            torch.zeros(SIZE, dtype=torch.uint8),
            torch.zeros(SIZE, dtype=torch.int8, device="meta"),
            torch.zeros((SIZE,), dtype=torch.int8),
            torch.zeros(SIZE, 1, dtype=torch.int8),
            torch.zeros(2, SIZE // 2, dtype=torch.int8),
            torch.zeros_like(torch.empty(SIZE, dtype=torch.int8)),
        ]
    assert mode.unused == [SIZE]
    assert all(not other.any() for other in others if other.device == CPU)


def test_other_functions_pass(mode: RegionForZeros) -> None:
    with mode:
        assert torch.empty(SIZE, dtype=torch.int8).shape == (SIZE,)
        assert torch.ones(SIZE, dtype=torch.int8).all()
    assert mode.unused == [SIZE]


def test_a_region_of_another_device_is_not_given_here(region: torch.Tensor) -> None:
    mode = RegionForZeros([(SIZE, lambda: region)], torch.device("cuda", 1))
    with mode:
        torch.zeros(SIZE, dtype=torch.int8, device="cpu")
    assert mode.unused == [SIZE]


def test_nothing_is_seen_outside(mode: RegionForZeros) -> None:
    with mode:
        pass
    torch.zeros(SIZE, dtype=torch.int8)
    assert mode.unused == [SIZE]
