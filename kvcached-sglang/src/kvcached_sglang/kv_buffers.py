"""Where the tensors of an SGLang KV pool lie in a region."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvcached import _C

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class PoolShape:
    """The rows of a pool's tensors, as SGLang stores them.

    A row holds one token in one plane (K or V, or both together) of one layer. A page of rows is
    one block of ours; page 0 takes the writes of padded tokens and belongs to nobody.
    """

    rows: int
    page_size: int
    plane_row_bytes: tuple[int, ...]
    """Bytes of a row, by plane: (K, V), or one for MLA."""
    layers: int

    @property
    def pages(self) -> int:
        """Pages, page 0 included."""
        return self.rows // self.page_size


class KVBuffers:
    """Tensors side by side in one region, each from a granule's start on."""

    def __init__(self, shape: PoolShape, granule: int) -> None:
        self.shape = shape
        # All layers of a plane one after another, as SGLang makes them; where it makes both
        # planes of a layer at once, they are of one size, and the order is the same to us.
        self._row_bytes = [size for size in shape.plane_row_bytes for _ in range(shape.layers)]
        self.offsets: list[int] = []
        end = 0
        for size in self._row_bytes:
            self.offsets.append(end)
            end += self._stride(size, granule)
        self.region_bytes = end
        self._granule = granule

    def _stride(self, row_bytes: int, granule: int) -> int:
        # Kernels that count in pages reach V from K's base, so the distance is whole pages too.
        page = row_bytes * self.shape.page_size
        step = math.lcm(granule, page)
        return -(-self.shape.rows * row_bytes // step) * step

    def stride(self, part: int) -> int:
        """Bytes from the start of a part to that of the next."""
        return self._stride(self._row_bytes[part], self._granule)

    @property
    def parts(self) -> int:
        """Planes of layers: tensors, or halves of them."""
        return len(self._row_bytes)

    def spans(self) -> list[tuple[int, int, int, int]]:
        """(region, offset, stride, bytes) of every part, for a geometry."""
        page = self.shape.page_size
        return [
            (0, offset, page * size, page * size)
            for offset, size in zip(self.offsets, self._row_bytes, strict=True)
        ]

    def geometry(self, min_part_bytes: int, max_mappings: int) -> _C.Geometry:
        """The geometry of this rank's cache, extents on granules' bounds where that is possible."""
        pages, regions, spans = self.shape.pages, [self.region_bytes], self.spans()
        blocks = _C.choose_blocks_per_extent(
            _C.Geometry(pages, regions, spans), self._granule, min_part_bytes, max_mappings
        )
        return _C.Geometry(pages, regions, spans, blocks)


def shape_of(pool: Any) -> PoolShape:
    """The shape of an MHA or MLA pool that has not made its tensors yet."""
    size = pool.store_dtype.itemsize
    if hasattr(pool, "kv_lora_rank"):
        planes: Sequence[int] = (pool.kv_cache_dim * size,)
    else:
        planes = (
            pool.head_num * pool.head_dim * size,
            pool.head_num * pool.v_head_dim * size,
        )
    return PoolShape(pool.size + pool.page_size, pool.page_size, tuple(planes), pool.layer_num)
