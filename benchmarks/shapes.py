"""Shapes of KV cache that the pager is measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcached import _C


@dataclass(frozen=True)
class Shape:
    """A cache of `layers` layers that lie apart, with `block_bytes` a block in each.

    `block_bytes` 0 stands for one granule of the driver. An extent has at least `part_bytes` in
    each layer.
    """

    name: str
    layers: int
    block_bytes: int
    part_bytes: int = 0


#: All layers of a block together, in a block of one granule: the smallest extent there is.
BLOCK_MAJOR = Shape("block-major", 1, 0)
#: Four layers, 2 KV heads of 64, blocks of 128 tokens in bf16: a model for tests.
FOUR_LAYERS = Shape("4 layers", 4, 64 << 10)
#: SmolLM2-135M: 30 layers, 3 KV heads of 64, blocks of 128 tokens in bf16.
THIRTY_LAYERS = Shape("30 layers", 30, 96 << 10)

SHAPES = (BLOCK_MAJOR, FOUR_LAYERS, THIRTY_LAYERS)


@dataclass(frozen=True)
class Plan:
    """A shape on one driver: how its blocks are gathered into extents, as the vLLM plugin does."""

    shape: Shape
    block_bytes: int
    blocks_per_extent: int

    @property
    def part_bytes(self) -> int:
        """Bytes of an extent in one layer: one handle."""
        return self.block_bytes * self.blocks_per_extent

    @property
    def extent_bytes(self) -> int:
        return self.part_bytes * self.shape.layers

    def geometry(self, extents: int) -> _C.Geometry:
        """A cache of so many extents."""
        return _geometry(
            self.shape, self.block_bytes, extents * self.blocks_per_extent, self.blocks_per_extent
        )


def _geometry(shape: Shape, block_bytes: int, blocks: int, blocks_per_extent: int) -> _C.Geometry:
    from kvcached import _C

    layer = blocks * block_bytes
    spans = [(0, index * layer, block_bytes, block_bytes) for index in range(shape.layers)]
    return _C.Geometry(blocks, [layer * shape.layers], spans, blocks_per_extent)


def plan_of(shape: Shape, driver: _C.Driver) -> Plan:
    """How a driver backs a shape."""
    from kvcached import _C

    granule = driver.granularity
    block_bytes = shape.block_bytes or granule
    # Blocks enough for one extent of any alignment; the bound on mappings is not met here.
    trial = _geometry(shape, block_bytes, 4096, 1)
    return Plan(shape, block_bytes, _C.choose_blocks_per_extent(trial, granule, shape.part_bytes))
