#pragma once

#include <cstdint>

#include "kvcached/geometry.hpp"

namespace kvcached {

/// `layers` layers one behind the other in one region, each a run of `blocks` blocks.
inline Geometry layers_apart(std::uint32_t layers, std::uint32_t blocks, std::uint64_t block_bytes,
                             std::uint32_t blocks_per_extent) {
  Geometry geometry;
  geometry.num_blocks = blocks;
  geometry.blocks_per_extent = blocks_per_extent;
  geometry.region_bytes = {layers * blocks * block_bytes};
  for (std::uint64_t layer = 0; layer < layers; ++layer) {
    geometry.spans.push_back({0, layer * blocks * block_bytes, block_bytes, block_bytes});
  }
  return geometry;
}

/// A region for every layer.
inline Geometry regions_apart(std::uint32_t layers, std::uint32_t blocks, std::uint64_t block_bytes,
                              std::uint32_t blocks_per_extent) {
  Geometry geometry;
  geometry.num_blocks = blocks;
  geometry.blocks_per_extent = blocks_per_extent;
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    geometry.region_bytes.push_back(blocks * block_bytes);
    geometry.spans.push_back({layer, 0, block_bytes, block_bytes});
  }
  return geometry;
}

/// All layers of a block together, `gap` unused bytes behind them.
inline Geometry block_major(std::uint32_t layers, std::uint32_t blocks, std::uint64_t layer_bytes,
                            std::uint32_t blocks_per_extent, std::uint64_t gap = 0) {
  Geometry geometry;
  geometry.num_blocks = blocks;
  geometry.blocks_per_extent = blocks_per_extent;
  const std::uint64_t stride = layers * layer_bytes + gap;
  geometry.region_bytes = {blocks * stride};
  for (std::uint64_t layer = 0; layer < layers; ++layer) {
    geometry.spans.push_back({0, layer * layer_bytes, stride, layer_bytes});
  }
  return geometry;
}

}  // namespace kvcached
