#include "kvcached/geometry.hpp"

#include <algorithm>
#include <numeric>

namespace kvcached {

Status Geometry::validate() const noexcept {
  if (num_blocks == 0 || blocks_per_extent == 0 || spans.empty() || region_bytes.empty()) {
    return Status::invalid_argument;
  }
  for (const Span& span : spans) {
    if (span.region >= region_bytes.size() || span.bytes == 0) return Status::invalid_argument;
    const std::uint64_t last = span.offset + std::uint64_t{num_blocks - 1} * span.stride;
    if (last + span.bytes > region_bytes[span.region]) return Status::invalid_argument;
  }
  return Status::ok;
}

std::vector<ByteRange> Geometry::bytes_of(std::uint32_t first, std::uint32_t count) const {
  const std::uint64_t begin_block = std::uint64_t{first} * blocks_per_extent;
  const std::uint64_t end_block =
      std::min<std::uint64_t>(begin_block + std::uint64_t{count} * blocks_per_extent, num_blocks);
  std::vector<ByteRange> ranges;
  ranges.reserve(spans.size());
  for (const Span& span : spans) {
    if (span.bytes == span.stride) {
      ranges.push_back({span.region, span.offset + begin_block * span.stride,
                        span.offset + end_block * span.stride});
      continue;
    }
    for (std::uint64_t block = begin_block; block < end_block; ++block) {
      const std::uint64_t begin = span.offset + block * span.stride;
      ranges.push_back({span.region, begin, begin + span.bytes});
    }
  }
  std::sort(ranges.begin(), ranges.end(), [](const ByteRange& a, const ByteRange& b) {
    return a.region != b.region ? a.region < b.region : a.begin < b.begin;
  });
  std::vector<ByteRange> merged;
  for (const ByteRange& range : ranges) {
    if (!merged.empty() && merged.back().region == range.region &&
        range.begin <= merged.back().end) {
      merged.back().end = std::max(merged.back().end, range.end);
    } else {
      merged.push_back(range);
    }
  }
  return merged;
}

std::vector<GranuleRun> Geometry::granules_of(std::uint32_t first, std::uint32_t count,
                                              std::size_t granule) const {
  std::vector<GranuleRun> runs;
  const auto add_shared = [&runs](std::uint32_t region, std::uint64_t index) {
    // Two ranges of one unit may meet in the same granule; it is listed once.
    if (!runs.empty() && runs.back().region == region &&
        runs.back().first + runs.back().count > index) {
      return;
    }
    runs.push_back({region, index, 1, false});
  };
  for (const ByteRange& range : bytes_of(first, count)) {
    const std::uint64_t full_begin = (range.begin + granule - 1) / granule;
    const std::uint64_t full_end = range.end / granule;
    const std::uint64_t touched_begin = range.begin / granule;
    const std::uint64_t touched_end = (range.end + granule - 1) / granule;
    if (touched_begin < full_begin) add_shared(range.region, touched_begin);
    if (full_begin < full_end) {
      runs.push_back({range.region, full_begin, full_end - full_begin, true});
    }
    if (touched_end > full_end && touched_end > full_begin) {
      add_shared(range.region, touched_end - 1);
    }
  }
  return runs;
}

std::uint64_t Geometry::extent_bytes(std::size_t granule) const {
  std::uint64_t granules = 0;
  for (const GranuleRun& run : granules_of(0, 1, granule)) granules += run.count;
  return granules * granule;
}

namespace {

// The blocks after which a contiguous span next ends on a granule; 1 for spans with gaps, where
// neighbouring layers fill the space between.
std::uint64_t blocks_to_alignment(const Geometry& geometry, std::size_t granule) {
  std::vector<std::uint64_t> packed(geometry.region_bytes.size(), 0);
  std::vector<bool> interleaved(geometry.region_bytes.size(), false);
  for (const Span& span : geometry.spans) {
    packed[span.region] += span.bytes;
    if (span.stride != span.bytes) interleaved[span.region] = true;
  }
  std::uint64_t blocks = 1;
  for (const Span& span : geometry.spans) {
    // Interleaved layers of one block lie together: their sum is what repeats, or, where a gap
    // follows them, their stride.
    const std::uint64_t repeats =
        interleaved[span.region] ? std::max(packed[span.region], span.stride) : span.stride;
    blocks = std::lcm(blocks, granule / std::gcd<std::uint64_t>(repeats, granule));
  }
  return blocks;
}

// Mappings of a cache in which every second extent is committed.
std::uint64_t scattered_mappings(const Geometry& geometry, std::size_t granule) {
  std::uint64_t parts = geometry.granules_of(0, 1, granule).size();
  return parts * geometry.num_extents();
}

}  // namespace

std::uint32_t choose_blocks_per_extent(const Geometry& geometry, std::size_t granule,
                                       std::size_t min_part_bytes, std::size_t max_mappings) {
  std::uint64_t largest = 0;
  for (const Span& span : geometry.spans) largest = std::max(largest, span.stride);
  if (largest == 0 || geometry.validate() != Status::ok) return 1;
  // Beyond this an extent would pin more than sharing its end granules saves.
  constexpr std::uint64_t kMaxAlignedBlocks = 64;
  std::uint64_t blocks = blocks_to_alignment(geometry, granule);
  if (blocks > kMaxAlignedBlocks) {
    blocks = std::max<std::uint64_t>(1, granule / largest);
  }
  const std::uint64_t step = blocks;
  while (blocks * largest < min_part_bytes && blocks < geometry.num_blocks) blocks += step;
  if (max_mappings != 0) {
    // The process needs mappings of its own too (libraries, heaps, thread stacks).
    const std::uint64_t allowed = max_mappings - max_mappings / 4;
    Geometry trial = geometry;
    for (;;) {
      trial.blocks_per_extent = static_cast<std::uint32_t>(blocks);
      if (scattered_mappings(trial, granule) <= allowed || blocks >= geometry.num_blocks) break;
      blocks *= 2;
    }
  }
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(blocks, geometry.num_blocks));
}

}  // namespace kvcached
