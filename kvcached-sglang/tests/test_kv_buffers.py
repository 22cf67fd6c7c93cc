"""Where an SGLang pool's tensors lie."""

from __future__ import annotations

import pytest
import torch

from kvcached_sglang.allocation import TensorsOverRegion
from kvcached_sglang.kv_buffers import KVBuffers, PoolShape

GRANULE = 65536


def buffers(page_size: int, planes: tuple[int, ...]) -> KVBuffers:
    return KVBuffers(PoolShape(page_size * 100, page_size, planes, layers=3), GRANULE)


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("planes", [(128, 128), (768, 512), (1152,)])
def test_every_part_begins_on_a_granule_and_whole_pages_apart(
    page_size: int, planes: tuple[int, ...]
) -> None:
    made = buffers(page_size, planes)
    assert made.parts == 3 * len(planes)
    for part, (_, offset, stride, size) in enumerate(made.spans()):
        assert offset % GRANULE == 0
        assert stride == size
        assert made.stride(part) % size == 0
        assert offset + made.stride(part) <= made.region_bytes
    ends = [offset + made.stride(part) for part, offset in enumerate(made.offsets)]
    assert ends[:-1] == made.offsets[1:]


def test_the_tensors_of_a_pool_lie_apart_in_its_region() -> None:
    made = buffers(4, (64, 64))
    region = torch.zeros(made.region_bytes, dtype=torch.int8)
    with TensorsOverRegion(made, region, torch.float32) as mode:
        tensors = [torch.zeros((400, 2, 8), dtype=torch.float32, device="cpu") for _ in range(6)]
    assert mode.unused == 0
    for number, tensor in enumerate(tensors):
        tensor.fill_(number + 1)
    for number, tensor in enumerate(tensors):
        assert tensor.is_contiguous()
        assert bool((tensor == number + 1).all())
        assert tensor.data_ptr() - region.data_ptr() == made.offsets[number]


def test_both_planes_of_a_layer_in_one_tensor_become_halves_of_two_parts() -> None:
    made = buffers(4, (64, 64))
    region = torch.zeros(made.region_bytes, dtype=torch.int8)
    with TensorsOverRegion(made, region, torch.float32) as mode:
        fused = [torch.zeros((2, 400, 2, 8), dtype=torch.float32, device="cpu") for _ in range(3)]
    assert mode.unused == 0
    starts = [half.data_ptr() - region.data_ptr() for tensor in fused for half in tensor]
    assert starts == made.offsets
    assert all(half.is_contiguous() for tensor in fused for half in tensor)


def test_other_tensors_are_pytorchs_own() -> None:
    made = buffers(4, (64, 64))
    region = torch.zeros(made.region_bytes, dtype=torch.int8)
    with TensorsOverRegion(made, region, torch.float32) as mode:
        torch.zeros((400, 2, 8), dtype=torch.int32)
        torch.zeros((7, 2, 8), dtype=torch.float32)
        torch.zeros(400)
    assert mode.unused == made.parts
