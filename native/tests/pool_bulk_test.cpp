#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <numeric>
#include <vector>

#include "hand_played_ranks.hpp"
#include "kvcached/pool.hpp"

namespace kvcached {
namespace {

using Ids = std::vector<std::int64_t>;

/// A pool of 16 blocks in extents of four, of which the first eight have memory.
class PoolBulk : public ::testing::Test {
 protected:
  static RowFacts facts() {
    RowFacts facts;
    facts.num_blocks = 16;
    facts.blocks_per_extent = 4;
    facts.pinned_extents = 1;
    facts.max_unit_extents = 1;
    facts.granule_bytes = facts.block_bytes = 4096;
    facts.extent_bytes = 4 * facts.block_bytes;
    facts.virtual_bytes = facts.block_bytes * facts.num_blocks;
    return facts;
  }

  void SetUp() override {
    (void)pool_.ensure(8, Pool::Clock::now());
    ranks_.serve();
    ASSERT_TRUE(pool_.ensure(8, Pool::Clock::now()));
  }

  Ids take(std::size_t count) {
    Ids ids(count, -1);
    EXPECT_TRUE(pool_.take_all(ids));
    return ids;
  }

  HandPlayedRanks ranks_{1, facts()};
  Pool pool_{ranks_.attach(), {0, 0}};
};

TEST_F(PoolBulk, GivesTheLowestBlocksInOrder) {
  EXPECT_EQ(take(5), (Ids{0, 1, 2, 3, 4}));
  EXPECT_EQ(pool_.num_free(), 3U);
}

TEST_F(PoolBulk, HoldsAsMuchAsItIsToldToUntilItIsToldOtherwise) {
  pool_.hold_at_least(5);
  pool_.balance(true);
  ranks_.serve();
  pool_.balance(true);
  EXPECT_EQ(pool_.num_usable(), 8U);
  pool_.hold_at_least(4);
  pool_.balance(true);
  ranks_.serve();
  EXPECT_EQ(pool_.num_usable(), 4U);
}

TEST_F(PoolBulk, TakesNothingWhereTooFewAreFree) {
  Ids ids(9, -1);
  EXPECT_FALSE(pool_.take_all(ids));
  EXPECT_EQ(pool_.num_free(), 8U);
  EXPECT_EQ(ids, Ids(9, -1));
}

TEST_F(PoolBulk, TakesBackInAnyOrder) {
  (void)take(6);
  EXPECT_TRUE(pool_.give_all(Ids{4, 0, 2}));
  EXPECT_EQ(take(3), (Ids{0, 2, 4}));
}

TEST_F(PoolBulk, ReturnsNothingWhereOneIsNotInUse) {
  (void)take(6);
  for (const std::int64_t wrong : {std::int64_t{7}, std::int64_t{-1}, std::int64_t{16}}) {
    EXPECT_FALSE(pool_.give_all(Ids{1, 3, wrong}));
    EXPECT_EQ(pool_.num_free(), 2U);
    EXPECT_EQ(pool_.num_used(), 6U);
  }
}

TEST_F(PoolBulk, ReturnsNothingWhereOneComesTwice) {
  (void)take(6);
  EXPECT_FALSE(pool_.give_all(Ids{1, 3, 1}));
  EXPECT_EQ(pool_.num_used(), 6U);
  EXPECT_TRUE(pool_.give_all(Ids{1, 3}));
}

TEST_F(PoolBulk, ReturnsTheRestFromABlockOn) {
  (void)take(7);
  pool_.give_rest(1);
  EXPECT_EQ(pool_.num_used(), 1U);
  EXPECT_EQ(pool_.num_free(), 7U);
  EXPECT_EQ(take(1), Ids{1});
}

TEST_F(PoolBulk, ReportsWhatTheEngineKeepsItselfAsCached) {
  (void)take(8);
  pool_.regard_as_cached(5);
  pool_.balance(false);
  const RowHeader& header = pool_.row(0).header();
  EXPECT_EQ(header.cached_blocks.load(), 5U);
  EXPECT_EQ(header.used_blocks.load(), 3U);
  pool_.regard_as_cached(20);  // more than is in use
  pool_.balance(false);
  EXPECT_EQ(header.cached_blocks.load(), 8U);
  EXPECT_EQ(header.used_blocks.load(), 0U);
}

}  // namespace
}  // namespace kvcached
