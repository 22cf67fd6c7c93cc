#include "kvcached/geometry.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "sample_geometry.hpp"
#include "test_seed.hpp"

namespace kvcached {
namespace {

constexpr std::uint64_t kGranule = 64;

using Bytes = std::vector<std::vector<std::uint64_t>>;  // {region, begin, end}
using Runs = std::vector<std::vector<std::uint64_t>>;   // {region, first, count, exclusive}

Bytes bytes_of(const Geometry& geometry, std::uint32_t first, std::uint32_t count = 1) {
  Bytes bytes;
  for (const ByteRange& range : geometry.bytes_of(first, count)) {
    bytes.push_back({range.region, range.begin, range.end});
  }
  return bytes;
}

Runs runs_of(const Geometry& geometry, std::uint32_t first, std::uint32_t count = 1) {
  Runs runs;
  for (const GranuleRun& run : geometry.granules_of(first, count, kGranule)) {
    runs.push_back({run.region, run.first, run.count, run.exclusive ? 1U : 0U});
  }
  return runs;
}

TEST(GeometryTest, LayersApartGiveAnExtentAPartInEveryLayer) {
  const Geometry geometry = layers_apart(3, 8, kGranule, 2);
  ASSERT_EQ(geometry.validate(), Status::ok);
  EXPECT_EQ(geometry.num_extents(), 4u);
  EXPECT_EQ(bytes_of(geometry, 1), (Bytes{{0, 128, 256}, {0, 640, 768}, {0, 1152, 1280}}));
  EXPECT_EQ(runs_of(geometry, 1), (Runs{{0, 2, 2, 1}, {0, 10, 2, 1}, {0, 18, 2, 1}}));
  EXPECT_EQ(geometry.extent_bytes(kGranule), 6 * kGranule);
}

TEST(GeometryTest, RegionsApartGiveAnExtentAPartInEveryRegion) {
  const Geometry geometry = regions_apart(2, 4, kGranule, 1);
  EXPECT_EQ(runs_of(geometry, 3), (Runs{{0, 3, 1, 1}, {1, 3, 1, 1}}));
}

TEST(GeometryTest, InterleavedLayersMakeAnExtentOneRun) {
  const Geometry geometry = block_major(4, 8, kGranule / 2, 1);
  ASSERT_EQ(geometry.validate(), Status::ok);
  EXPECT_EQ(bytes_of(geometry, 2), (Bytes{{0, 256, 384}}));
  EXPECT_EQ(runs_of(geometry, 2), (Runs{{0, 4, 2, 1}}));
  EXPECT_EQ(runs_of(geometry, 2, 3), (Runs{{0, 4, 6, 1}}));
}

TEST(GeometryTest, NeighbouringLayersOfAUnitThatCoversThemAllAreOneRun) {
  const Geometry geometry = layers_apart(2, 4, kGranule, 1);
  EXPECT_EQ(runs_of(geometry, 0, 4), (Runs{{0, 0, 8, 1}}));
}

TEST(GeometryTest, TheLastExtentIsShortWhereBlocksDoNotFillIt) {
  const Geometry geometry = block_major(1, 10, kGranule, 4);
  EXPECT_EQ(geometry.num_extents(), 3u);
  EXPECT_EQ(bytes_of(geometry, 2), (Bytes{{0, 8 * kGranule, 10 * kGranule}}));
  EXPECT_EQ(bytes_of(geometry, 1, 2), (Bytes{{0, 4 * kGranule, 10 * kGranule}}));
}

TEST(GeometryTest, BlocksThatDoNotDivideAGranuleShareGranulesWithTheirNeighbours) {
  const Geometry geometry = block_major(1, 4, kGranule * 3 / 2, 1);
  EXPECT_EQ(runs_of(geometry, 0), (Runs{{0, 0, 1, 1}, {0, 1, 1, 0}}));
  EXPECT_EQ(runs_of(geometry, 1), (Runs{{0, 1, 1, 0}, {0, 2, 1, 1}}));
  EXPECT_EQ(runs_of(geometry, 0, 2), (Runs{{0, 0, 3, 1}}));
}

TEST(GeometryTest, BlocksSmallerThanAGranuleShareItWithoutFillingIt) {
  const Geometry geometry = block_major(1, 8, kGranule / 4, 1);
  EXPECT_EQ(runs_of(geometry, 1), (Runs{{0, 0, 1, 0}}));
  EXPECT_EQ(runs_of(geometry, 2, 4), (Runs{{0, 0, 1, 0}, {0, 1, 1, 0}}));
  EXPECT_EQ(runs_of(geometry, 4, 4), (Runs{{0, 1, 1, 1}}));
}

TEST(GeometryTest, TwoPartsOfOneExtentInOneGranuleListItOnce) {
  // Four blocks of a quarter granule a layer, the second layer right behind the first.
  const Geometry geometry = layers_apart(2, 2, kGranule / 4, 1);
  EXPECT_EQ(bytes_of(geometry, 0), (Bytes{{0, 0, 16}, {0, 32, 48}}));
  EXPECT_EQ(runs_of(geometry, 0), (Runs{{0, 0, 1, 0}}));
  EXPECT_EQ(geometry.extent_bytes(kGranule), kGranule);
}

TEST(GeometryTest, ARegionThatEndsInsideAGranuleEndsInASharedOne) {
  const Geometry geometry = block_major(1, 3, kGranule / 2, 2);
  EXPECT_EQ(runs_of(geometry, 0), (Runs{{0, 0, 1, 1}}));
  EXPECT_EQ(runs_of(geometry, 1), (Runs{{0, 1, 1, 0}}));
}

TEST(GeometryTest, WhatHasNoBytesOrLeavesItsRegionIsRefused) {
  EXPECT_EQ(Geometry{}.validate(), Status::invalid_argument);
  const Geometry good = layers_apart(2, 4, kGranule, 2);
  Geometry bad = good;
  bad.num_blocks = 0;
  EXPECT_EQ(bad.validate(), Status::invalid_argument);
  bad = good;
  bad.blocks_per_extent = 0;
  EXPECT_EQ(bad.validate(), Status::invalid_argument);
  bad = good;
  bad.spans[1].region = 1;
  EXPECT_EQ(bad.validate(), Status::invalid_argument);
  bad = good;
  bad.spans[1].bytes = 0;
  EXPECT_EQ(bad.validate(), Status::invalid_argument);
  bad = good;
  bad.region_bytes[0] -= 1;
  EXPECT_EQ(bad.validate(), Status::invalid_argument);
  bad = good;
  bad.spans[1].offset += 1;
  EXPECT_EQ(bad.validate(), Status::invalid_argument);
}

Geometry random_geometry(Dice& dice) {
  const std::uint32_t blocks = dice.between(1, 40);
  const std::uint32_t layers = dice.between(1, 4);
  const std::uint32_t bytes = dice.between(1, 5) * dice.between(1, 48);
  const std::uint32_t per_extent = dice.between(1, 6);
  switch (dice.between(0, 3)) {
    case 0:
      return layers_apart(layers, blocks, bytes, per_extent);
    case 1:
      return regions_apart(layers, blocks, bytes, per_extent);
    case 2:
      return block_major(layers, blocks, bytes, per_extent);
    default:
      return block_major(layers, blocks, bytes, per_extent, dice.between(1, 100));
  }
}

using Granule = std::pair<std::uint32_t, std::uint64_t>;

// Bytes of a unit in each granule, counted block by block.
std::map<Granule, std::uint64_t> count_bytes(const Geometry& geometry, std::uint32_t first,
                                             std::uint32_t count) {
  std::map<Granule, std::uint64_t> bytes;
  const std::uint32_t end =
      std::min((first + count) * geometry.blocks_per_extent, geometry.num_blocks);
  for (std::uint32_t block = first * geometry.blocks_per_extent; block < end; ++block) {
    for (const Span& span : geometry.spans) {
      const std::uint64_t begin = span.offset + block * span.stride;
      for (std::uint64_t byte = begin; byte < begin + span.bytes; ++byte) {
        ++bytes[{span.region, byte / kGranule}];
      }
    }
  }
  return bytes;
}

TEST(GeometryTest, GranulesCoverExactlyTheBlocksAndExclusiveOnesBelongToOneExtent) {
  for (std::uint64_t seed = first_seed(), last = seed + 200; seed < last; ++seed) {
    SCOPED_TRACE(describe_seed(seed));
    Dice dice(seed);
    const Geometry geometry = random_geometry(dice);
    ASSERT_EQ(geometry.validate(), Status::ok);
    std::map<Granule, std::uint32_t> users;
    std::set<Granule> exclusive;
    const std::uint32_t step = dice.between(1, 3);
    for (std::uint32_t first = 0; first < geometry.num_extents(); first += step) {
      const std::uint32_t count = std::min(step, geometry.num_extents() - first);
      const auto expected = count_bytes(geometry, first, count);
      std::map<Granule, bool> listed;
      Granule previous{0, 0};
      for (const GranuleRun& run : geometry.granules_of(first, count, kGranule)) {
        ASSERT_TRUE(run.exclusive || run.count == 1);
        for (std::uint64_t index = run.first; index < run.first + run.count; ++index) {
          const Granule granule{run.region, index};
          ASSERT_TRUE(listed.emplace(granule, run.exclusive).second) << "listed twice";
          ASSERT_LE(previous, granule);
          previous = granule;
          ++users[granule];
          if (run.exclusive) exclusive.insert(granule);
        }
      }
      ASSERT_EQ(listed.size(), expected.size());
      for (const auto& [granule, bytes] : expected) {
        ASSERT_TRUE(listed.contains(granule));
        ASSERT_EQ(listed[granule], bytes == kGranule);
      }
    }
    for (const Granule& granule : exclusive) ASSERT_EQ(users[granule], 1u);
  }
}

std::uint32_t choose(const Geometry& geometry, std::size_t min_part = 0, std::size_t mappings = 0) {
  return choose_blocks_per_extent(geometry, kGranule, min_part, mappings);
}

TEST(ChooseBlocksPerExtentTest, TakesOneBlockWhereItFillsGranules) {
  EXPECT_EQ(choose(layers_apart(4, 100, 2 * kGranule, 1)), 1u);
  EXPECT_EQ(choose(block_major(4, 100, kGranule / 4, 1)), 1u);
}

TEST(ChooseBlocksPerExtentTest, TakesTheSmallestNumberThatEndsOnGranules) {
  EXPECT_EQ(choose(layers_apart(4, 100, kGranule / 4, 1)), 4u);
  EXPECT_EQ(choose(layers_apart(4, 100, kGranule * 3 / 8, 1)), 8u);
  EXPECT_EQ(choose(block_major(3, 100, kGranule / 2, 1)), 2u);
}

TEST(ChooseBlocksPerExtentTest, TakesANumberThatSuitsAllSpans) {
  Geometry geometry = regions_apart(2, 100, kGranule / 2, 1);
  geometry.spans[1].stride = geometry.spans[1].bytes = kGranule / 8;
  EXPECT_EQ(choose(geometry), 8u);
}

TEST(ChooseBlocksPerExtentTest, LooksAtEachRegionsOwnInterleaving) {
  // Keys and values of one layer side by side, a region for each layer: what has to end on a
  // granule is a layer's block, and not the sum of all layers.
  Geometry geometry;
  geometry.num_blocks = 100;
  const std::uint64_t plane = kGranule / 8;
  for (std::uint32_t layer = 0; layer < 4; ++layer) {
    geometry.region_bytes.push_back(100 * 2 * plane);
    geometry.spans.push_back({layer, 0, 2 * plane, plane});
    geometry.spans.push_back({layer, plane, 2 * plane, plane});
  }
  EXPECT_EQ(choose(geometry), 4u);
}

TEST(ChooseBlocksPerExtentTest, CountsAGapBehindABlockAsPartOfIt) {
  EXPECT_EQ(choose(block_major(2, 100, kGranule / 4, 1, kGranule / 4)), 4u);
}

TEST(ChooseBlocksPerExtentTest, SharesGranulesWhereNoSmallNumberEndsOnThem) {
  // 1,024-byte granules and a prime block: 1,024 blocks would be needed.
  const Geometry geometry = block_major(1, 5000, 97, 1);
  EXPECT_EQ(choose_blocks_per_extent(geometry, 1024, 0, 0), 1024u / 97);
  EXPECT_EQ(choose_blocks_per_extent(block_major(1, 50, 2003, 1), 1024, 0, 0), 1u);
}

TEST(ChooseBlocksPerExtentTest, MakesPartsAsLargeAsAsked) {
  EXPECT_EQ(choose(layers_apart(4, 100, kGranule, 1), 5 * kGranule), 5u);
  // In steps that end on granules.
  EXPECT_EQ(choose(layers_apart(4, 100, kGranule / 2, 1), 5 * kGranule / 2), 6u);
}

TEST(ChooseBlocksPerExtentTest, NeverTakesMoreBlocksThanThereAre) {
  EXPECT_EQ(choose(layers_apart(4, 3, kGranule / 16, 1)), 3u);
  EXPECT_EQ(choose(layers_apart(4, 3, kGranule, 1), 1000 * kGranule), 3u);
  EXPECT_EQ(choose(layers_apart(64, 8, kGranule, 1), 0, 16), 8u);
}

TEST(ChooseBlocksPerExtentTest, KeepsAScatteredCacheBelowTheBoundOnMappings) {
  for (const std::size_t bound : {64U, 100U, 1000U, 5000U}) {
    Geometry geometry = layers_apart(8, 1000, kGranule, 1);
    geometry.blocks_per_extent = choose(geometry, 0, bound);
    std::size_t mappings = 0;
    for (std::uint32_t extent = 0; extent < geometry.num_extents(); ++extent) {
      mappings += geometry.granules_of(extent, 1, kGranule).size();
    }
    EXPECT_LT(mappings, bound);
    EXPECT_GT(2 * mappings, bound / 2) << "larger extents than the bound needs";
  }
}

TEST(ChooseBlocksPerExtentTest, AnswersOneForWhatCannotBeBacked) {
  EXPECT_EQ(choose(Geometry{}), 1u);
  Geometry elsewhere = layers_apart(1, 10, kGranule / 2, 1);
  elsewhere.spans[0].region = 7;
  EXPECT_EQ(choose(elsewhere), 1u);
}

}  // namespace
}  // namespace kvcached
