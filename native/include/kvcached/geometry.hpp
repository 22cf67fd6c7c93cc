#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvcached/status.hpp"

namespace kvcached {

/// Where the blocks of one layer (or of one of its planes) lie in a region: block `b` takes
/// `bytes` bytes from `offset + b * stride`.
struct Span {
  std::uint32_t region = 0;
  std::uint64_t offset = 0;
  std::uint64_t stride = 0;
  std::uint64_t bytes = 0;
};

/// A run of neighbouring granules of one region that a unit of extents touches.
struct GranuleRun {
  std::uint32_t region = 0;
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  /// The unit's own bytes fill every granule of the run, so that one handle may back all of it.
  /// Otherwise the run is a single granule shared with neighbours.
  bool exclusive = false;
};

/// Bytes [begin, end) of one region.
struct ByteRange {
  std::uint32_t region = 0;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// How block ids become bytes on one rank, and how blocks are gathered into extents.
///
/// Extent `e` is the blocks [e * blocks_per_extent, (e + 1) * blocks_per_extent); the last one
/// may be short.
struct Geometry {
  std::uint32_t num_blocks = 0;
  std::uint32_t blocks_per_extent = 1;
  std::vector<std::uint64_t> region_bytes;
  std::vector<Span> spans;

  [[nodiscard]] std::uint32_t num_extents() const noexcept {
    return (num_blocks + blocks_per_extent - 1) / blocks_per_extent;
  }

  /// invalid_argument where a span leaves its region or there is nothing to back.
  [[nodiscard]] Status validate() const noexcept;

  /// The bytes of `count` extents from `first` on, sorted, overlapping and touching ranges merged.
  [[nodiscard]] std::vector<ByteRange> bytes_of(std::uint32_t first, std::uint32_t count) const;

  /// The granules under those bytes, each once.
  [[nodiscard]] std::vector<GranuleRun> granules_of(std::uint32_t first, std::uint32_t count,
                                                    std::size_t granule) const;

  /// The physical bytes that one extent takes when no neighbour shares a granule with it.
  [[nodiscard]] std::uint64_t extent_bytes(std::size_t granule) const;
};

/// The smallest number of blocks an extent whose parts end on granules, at least
/// `min_part_bytes` a part, and few enough extents that a fully scattered cache stays below
/// `max_mappings` mappings (0: no bound). Where no small number ends on granules, extents share
/// the granules at their ends.
[[nodiscard]] std::uint32_t choose_blocks_per_extent(const Geometry& geometry, std::size_t granule,
                                                     std::size_t min_part_bytes,
                                                     std::size_t max_mappings);

}  // namespace kvcached
