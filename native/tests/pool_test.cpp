#include "kvcached/pool.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "hand_played_ranks.hpp"
#include "test_seed.hpp"

namespace kvcached {
namespace {

using Clock = Pool::Clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

using Blocks = std::vector<std::uint32_t>;

/// A pool over ranks whose pagers the test plays. One granule a block.
struct Rig {
  static RowFacts facts_for(std::uint32_t blocks, std::uint32_t blocks_per_extent,
                            std::uint32_t max_unit) {
    RowFacts facts;
    facts.num_blocks = blocks;
    facts.blocks_per_extent = blocks_per_extent;
    facts.pinned_extents = 1;
    facts.max_unit_extents = max_unit;
    facts.granule_bytes = facts.block_bytes = 4096;
    facts.extent_bytes = facts.block_bytes * blocks_per_extent;
    facts.virtual_bytes = facts.block_bytes * blocks;
    return facts;
  }

  explicit Rig(std::uint32_t blocks, std::uint32_t blocks_per_extent = 1, std::size_t count = 1,
               SlackBounds slack = {1, 10}, std::uint32_t max_unit = 1)
      : ranks(count, facts_for(blocks, blocks_per_extent, max_unit)), pool(ranks.attach(), slack) {}

  static Clock::time_point now() { return Clock::now(); }

  /// Blocks of memory that is granted at once.
  bool have(std::uint32_t blocks) {
    if (pool.ensure(blocks, now())) return true;
    ranks.serve();
    return pool.ensure(blocks, now());
  }
  void deny_everything() {
    for (std::size_t rank = 0; rank < pool.extents().ranks(); ++rank) {
      for (const Row::Request unit : ranks.requests(rank)) {
        const bool wanted = ranks.row(rank).state(unit.first) == ExtentState::wanted;
        ranks.answer(rank, unit, wanted ? ExtentState::denied : ExtentState::absent);
      }
    }
  }
  Blocks take(std::uint32_t count) {
    Blocks blocks;
    for (std::uint32_t n = 0; n < count; ++n) blocks.push_back(pool.take());
    return blocks;
  }
  void give(const Blocks& blocks) {
    for (const std::uint32_t block : blocks) EXPECT_TRUE(pool.give(block));
  }
  /// Lets releases happen and takes the answers in, until nothing moves.
  void settle(bool idle = true) {
    do {
      pool.balance(idle);
    } while (ranks.serve() != 0);
  }

  HandPlayedRanks ranks;
  Pool pool;
};

Blocks range(std::uint32_t first, std::uint32_t end) {
  Blocks blocks(end - first);
  std::iota(blocks.begin(), blocks.end(), first);
  return blocks;
}

TEST(PoolTest, StartsWithTheBlocksOfThePinnedExtents) {
  const Rig rig(10, 4);
  EXPECT_EQ(rig.pool.num_free(), 4u);
  EXPECT_EQ(rig.pool.num_usable(), 4u);
  EXPECT_EQ(rig.pool.num_used(), 0u);
  EXPECT_EQ(rig.pool.num_growable(), 6u) << "the last extent is short";
}

TEST(PoolTest, HandsOutTheLowestAddressFirst) {
  Rig rig(16);
  ASSERT_TRUE(rig.have(8));
  EXPECT_EQ(rig.take(8), range(0, 8));
  rig.give({6, 2, 4});
  EXPECT_EQ(rig.pool.in_order(), (Blocks{2, 4, 6}));
  EXPECT_EQ(rig.take(3), (Blocks{2, 4, 6}));
  EXPECT_EQ(rig.pool.take(), Pool::kNone);
}

TEST(PoolTest, HandsOutCachedBlocksOnlyWhenNoFreeOneIsLeftTheOldestFirst) {
  Rig rig(16);
  ASSERT_TRUE(rig.have(6));
  rig.take(6);
  for (const std::uint32_t block : {3U, 0U, 5U}) EXPECT_TRUE(rig.pool.give_cached(block));
  rig.give({4});
  EXPECT_EQ(rig.pool.num_free(), 4u);
  EXPECT_EQ(rig.pool.num_unhashed(), 1u);
  EXPECT_EQ(rig.pool.num_cached(), 3u);
  EXPECT_EQ(rig.pool.in_order(), (Blocks{4, 3, 0, 5}));
  EXPECT_EQ(rig.take(4), (Blocks{4, 3, 0, 5}));
}

TEST(PoolTest, ANamedBlockIsTakenFromWhereverItIs) {
  Rig rig(16);
  ASSERT_TRUE(rig.have(6));
  EXPECT_TRUE(rig.pool.remove(3));
  EXPECT_FALSE(rig.pool.remove(3)) << "it is used already";
  EXPECT_FALSE(rig.pool.remove(9)) << "it has no memory";
  EXPECT_FALSE(rig.pool.remove(16)) << "it does not exist";
  EXPECT_TRUE(rig.pool.give_cached(3));
  EXPECT_TRUE(rig.pool.remove(3));
  EXPECT_EQ(rig.take(5), (Blocks{0, 1, 2, 4, 5}));
}

TEST(PoolTest, ABlockGivenBackTwiceIsRefused) {
  Rig rig(16);
  ASSERT_TRUE(rig.have(4));
  const std::uint32_t block = rig.pool.take();
  EXPECT_FALSE(rig.pool.give(block + 1)) << "it was never taken";
  EXPECT_TRUE(rig.pool.give(block));
  EXPECT_FALSE(rig.pool.give(block));
  EXPECT_FALSE(rig.pool.give_cached(block));
  EXPECT_FALSE(rig.pool.forget(block)) << "it holds no prefix";
  EXPECT_EQ(rig.pool.take(), block);
  EXPECT_TRUE(rig.pool.give_cached(block));
  EXPECT_FALSE(rig.pool.give(block));
  EXPECT_FALSE(rig.pool.give_cached(block));
  EXPECT_TRUE(rig.pool.forget(block));
  EXPECT_FALSE(rig.pool.forget(block));
  EXPECT_FALSE(rig.pool.give(16));
  EXPECT_FALSE(rig.pool.give_cached(16));
  EXPECT_FALSE(rig.pool.forget(16));
  EXPECT_EQ(rig.pool.num_free(), 4u);
}

TEST(PoolTest, AForgottenPrefixIsAnOrdinaryFreeBlockAgain) {
  Rig rig(16);
  ASSERT_TRUE(rig.have(3));
  rig.take(3);
  EXPECT_TRUE(rig.pool.give_cached(1));
  EXPECT_TRUE(rig.pool.give_cached(2));
  EXPECT_TRUE(rig.pool.forget(2));
  EXPECT_EQ(rig.pool.in_order(), (Blocks{2, 1}));
}

TEST(PoolTest, EnsureIsTrueExactlyWhenTheBlocksAreThere) {
  Rig rig(16);
  EXPECT_TRUE(rig.pool.ensure(1, rig.now()));
  EXPECT_FALSE(rig.pool.ensure(5, rig.now()));
  EXPECT_EQ(rig.pool.num_unhashed(), 1u);
  rig.ranks.serve();
  EXPECT_TRUE(rig.pool.ensure(5, rig.now()));
  EXPECT_EQ(rig.pool.num_unhashed(), 5u);
  EXPECT_FALSE(rig.have(17)) << "more than there are";
  EXPECT_EQ(rig.pool.num_unhashed(), 16u);
}

TEST(PoolTest, EnsureCountsNoCachedBlock) {
  Rig rig(16);
  ASSERT_TRUE(rig.have(4));
  rig.take(4);
  for (std::uint32_t block = 0; block < 4; ++block) EXPECT_TRUE(rig.pool.give_cached(block));
  EXPECT_FALSE(rig.pool.ensure(1, rig.now()));
  rig.ranks.serve();
  EXPECT_TRUE(rig.pool.ensure(1, rig.now()));
  EXPECT_EQ(rig.pool.num_cached(), 4u);
}

TEST(PoolTest, EnsureAsksOnlyForWhatIsNotComingAlready) {
  Rig rig(20, 4);
  EXPECT_FALSE(rig.pool.ensure(9, rig.now()));
  EXPECT_EQ(rig.pool.extents().wanted(), 2u);
  EXPECT_FALSE(rig.pool.ensure(9, rig.now()));
  EXPECT_FALSE(rig.pool.ensure(12, rig.now()));
  EXPECT_EQ(rig.pool.extents().wanted(), 2u);
  EXPECT_FALSE(rig.pool.ensure(13, rig.now()));
  EXPECT_EQ(rig.pool.extents().wanted(), 3u);
  EXPECT_EQ(rig.pool.num_growable(), 16u) << "what is wanted may still come";
}

TEST(PoolTest, EnsureReachesTheShortLastExtent) {
  Rig rig(10, 4);
  EXPECT_TRUE(rig.have(10));
  EXPECT_EQ(rig.pool.num_usable(), 10u);
  EXPECT_EQ(rig.pool.num_growable(), 0u);
}

TEST(PoolTest, WhatIsExpectedIsWantedWithoutWaitingAndKeptAheadUntilTheEngineIdles) {
  Rig rig(64, 4, 2, {0, 1});
  rig.pool.expect(14);
  EXPECT_EQ(rig.pool.extents().wanted(), 3u) << "four are free already";
  rig.pool.expect(14);
  EXPECT_EQ(rig.pool.extents().wanted(), 3u);
  rig.ranks.serve();
  for (int step = 0; step < 20; ++step) {
    rig.pool.balance(false);
    rig.ranks.serve();
  }
  EXPECT_GE(rig.pool.num_unhashed(), 14u);
  EXPECT_FALSE(rig.pool.in_flight());
  rig.settle();
  EXPECT_EQ(rig.pool.num_usable(), 4u);
}

TEST(PoolTest, WhatIsMissingIsOrderedForManyStepsAtOnceAndStays) {
  Rig rig(256, 4, 1, {0, 0});
  rig.pool.expect(8, 40);
  EXPECT_EQ(rig.pool.extents().wanted(), 9u) << "four are free already";
  rig.ranks.serve();
  rig.pool.balance(false);
  EXPECT_EQ(rig.pool.num_unhashed(), 40u);
  // As the blocks are taken nothing more is ordered, and nothing goes, until too few are left.
  for (int left = 40; left > 8; --left) {
    ASSERT_NE(rig.pool.take(), Pool::kNone);
    rig.pool.expect(7, 40);
    rig.pool.balance(false);
    ASSERT_EQ(rig.pool.extents().wanted(), 0u) << left;
    ASSERT_FALSE(rig.pool.in_flight()) << left;
  }
  ASSERT_NE(rig.pool.take(), Pool::kNone);
  ASSERT_NE(rig.pool.take(), Pool::kNone);
  rig.pool.expect(7, 40);
  EXPECT_EQ(rig.pool.extents().wanted(), 9u);
  rig.ranks.serve();
  rig.settle();
  EXPECT_EQ(rig.pool.extents().empty(), 0u) << "an idle engine keeps none of it";
}

TEST(PoolTest, AStepsEndTellsWhetherPrefixesHaveToGo) {
  Rig rig(64, 4, 1, {0, 0});
  EXPECT_FALSE(rig.pool.end_step(10, 10, 30, 2));
  EXPECT_EQ(rig.pool.extents().wanted(), 3u) << "as expect() and balance() want";
  rig.ranks.serve();
  rig.pool.balance(false);
  std::vector<std::uint32_t> taken;
  for (int count = 0; count < 3; ++count) taken.push_back(rig.pool.take());
  for (const std::uint32_t block : taken) ASSERT_TRUE(rig.pool.give_cached(block));
  EXPECT_FALSE(rig.pool.end_step(0, 0, 0, 3));
  EXPECT_TRUE(rig.pool.end_step(0, 0, 0, 2));
  EXPECT_FALSE(rig.pool.end_step(0, 0, 0, 0xffffffff)) << "all may stay";
}

TEST(PoolTest, NothingExpectedIsWantedAfterADenial) {
  Rig rig(64, 4);
  rig.pool.expect(14);
  rig.deny_everything();
  rig.pool.balance(false);
  ASSERT_TRUE(rig.pool.denied());
  rig.pool.expect(30);
  EXPECT_EQ(rig.pool.extents().wanted(), 0u);
}

TEST(PoolTest, WhatIsExpectedCountsTheShortLastExtentForWhatItIs) {
  Rig rig(9, 4, 1, {0, 0});
  rig.pool.expect(12);
  EXPECT_EQ(rig.pool.extents().wanted(), 2u);
  EXPECT_EQ(rig.pool.num_growable(), 5u);
}

TEST(PoolTest, EnsureGivesUpAtItsDeadline) {
  Rig rig(16, 1, 2);
  const auto begin = Clock::now();
  EXPECT_FALSE(rig.pool.ensure(4, begin + milliseconds(30)));
  EXPECT_GE(Clock::now() - begin, milliseconds(30));
  EXPECT_LT(Clock::now() - begin, seconds(2));
  EXPECT_FALSE(rig.pool.ensure(4, begin - seconds(1))) << "a deadline in the past only looks";
}

TEST(PoolTest, EnsureReturnsAsSoonAsTheLastRankHasAnswered) {
  Rig rig(16, 1, 3);
  std::thread pagers([&] {
    for (const std::size_t rank : {2U, 0U, 1U}) {
      std::this_thread::sleep_for(milliseconds(10));
      for (int tries = 0; tries < 1000; ++tries) {
        const auto requests = rig.ranks.requests(rank);
        for (const Row::Request unit : requests) {
          rig.ranks.answer(rank, unit, ExtentState::committed);
        }
        if (!requests.empty()) break;
        std::this_thread::sleep_for(milliseconds(1));
      }
    }
  });
  const auto begin = Clock::now();
  EXPECT_TRUE(rig.pool.ensure(2, begin + seconds(20)));
  EXPECT_LT(Clock::now() - begin, seconds(10));
  pagers.join();
}

TEST(PoolTest, WaitingWithoutAnythingToWaitForReturnsAtOnce) {
  Rig rig(16, 1, 2);
  const auto begin = Clock::now();
  rig.pool.wait(begin + seconds(20));
  EXPECT_FALSE(rig.pool.ensure(4, rig.now()));
  rig.ranks.serve();
  // Answered, but not looked at yet.
  rig.pool.wait(begin + seconds(20));
  EXPECT_LT(Clock::now() - begin, seconds(10));
}

TEST(PoolTest, WaitingIsNotFooledByAReleaseThatWaitsForItsFence) {
  Rig rig(16);
  ASSERT_TRUE(rig.have(6));
  rig.pool.balance(true);
  (void)rig.ranks.requests(0);  // never answered
  ASSERT_GT(rig.pool.extents().releasing(), 0u);
  EXPECT_FALSE(rig.pool.ensure(rig.pool.num_unhashed() + 1, rig.now()));
  for (const Row::Request unit : rig.ranks.requests(0)) {
    rig.ranks.answer(0, unit, ExtentState::committed);
  }
  const auto begin = Clock::now();
  rig.pool.wait(begin + seconds(20));
  EXPECT_LT(Clock::now() - begin, seconds(10)) << "the answer was there";
}

TEST(PoolTest, AfterADenialNothingIsGrowableUntilSomethingMayHaveChanged) {
  Rig rig(16, 1, 2);
  EXPECT_FALSE(rig.pool.denied());
  EXPECT_FALSE(rig.pool.denied_recently());
  EXPECT_FALSE(rig.pool.ensure(4, rig.now()));
  rig.deny_everything();
  EXPECT_FALSE(rig.pool.ensure(4, Clock::now() + seconds(20))) << "nothing to wait for";
  EXPECT_TRUE(rig.pool.denied());
  EXPECT_TRUE(rig.pool.denied_recently());
  EXPECT_EQ(rig.pool.num_growable(), 0u);
  EXPECT_FALSE(rig.pool.ensure(4, Clock::now() + seconds(20)));
  EXPECT_EQ(rig.pool.extents().wanted(), 0u) << "it was not even asked again";
  rig.pool.begin_step(1);
  EXPECT_EQ(rig.pool.num_growable(), 0u);
  rig.ranks.row(1).header().capacity_epoch += 1;
  EXPECT_EQ(rig.pool.num_growable(), 0u) << "a step sees one answer";
  rig.pool.begin_step(2);
  EXPECT_EQ(rig.pool.num_growable(), 15u);
  EXPECT_TRUE(rig.pool.denied_recently());
  EXPECT_TRUE(rig.have(4));
}

TEST(PoolTest, ARefusedDriverIsAskedAgainAfterAWhile) {
  Rig rig(16);
  EXPECT_FALSE(rig.pool.ensure(4, rig.now()));
  rig.deny_everything();
  EXPECT_FALSE(rig.pool.ensure(4, rig.now()));
  std::this_thread::sleep_for(milliseconds(120));
  EXPECT_TRUE(rig.pool.denied());
  rig.pool.begin_step(1);
  EXPECT_FALSE(rig.pool.denied());
}

TEST(PoolTest, ADenialThatComesWhileOthersAreGrantedKeepsWhatWasGranted) {
  Rig rig(16);
  EXPECT_FALSE(rig.pool.ensure(5, rig.now()));
  const auto requests = rig.ranks.requests(0);
  ASSERT_EQ(requests.size(), 4u);
  for (const Row::Request unit : requests) {
    rig.ranks.answer(0, unit, unit.first < 3 ? ExtentState::committed : ExtentState::denied);
  }
  EXPECT_FALSE(rig.pool.ensure(5, rig.now()));
  EXPECT_EQ(rig.pool.num_unhashed(), 3u);
  EXPECT_TRUE(rig.pool.ensure(3, rig.now()));
}

TEST(PoolTest, TheLimitBoundsWhatIsGrowable) {
  Rig rig(16, 2);
  EXPECT_EQ(rig.pool.num_growable(), 14u);
  rig.pool.set_limit(6 * 4096);
  EXPECT_EQ(rig.ranks.row(0).header().limit_bytes, 6u * 4096);
  EXPECT_EQ(rig.pool.num_growable(), 4u);
  EXPECT_FALSE(rig.have(8));
  EXPECT_EQ(rig.pool.num_usable(), 6u) << "up to the limit and no further";
  EXPECT_EQ(rig.pool.num_growable(), 0u);
  rig.pool.set_limit(0);
  EXPECT_TRUE(rig.have(8));
}

TEST(PoolTest, TheLimitCountsWhatIsOnItsWayOut) {
  Rig rig(16);
  rig.pool.set_limit(6 * 4096);
  ASSERT_TRUE(rig.have(6));
  rig.pool.balance(true);
  EXPECT_EQ(rig.pool.extents().releasing(), 4u);
  EXPECT_EQ(rig.pool.num_growable(), 0u);
  rig.settle();
  EXPECT_EQ(rig.pool.num_growable(), 4u);
}

TEST(PoolTest, TheLimitReckonsSharedGranulesOnce) {
  // A block of one granule and a half takes two alone and one and a half among others.
  RowFacts facts = Rig::facts_for(16, 1, 1);
  facts.block_bytes = 6144;
  facts.extent_bytes = 8192;
  facts.virtual_bytes = 16 * 6144;
  HandPlayedRanks ranks(1, facts);
  Pool pool(ranks.attach(), {1, 10});
  pool.set_limit(12 * 4096);
  EXPECT_EQ(pool.num_growable(), 7u);
}

TEST(PoolTest, ALimitSetBeforeThePoolIsKnownToIt) {
  HandPlayedRanks ranks(1, Rig::facts_for(16, 1, 1));
  ranks.row(0).header().limit_bytes = 3 * 4096;
  const Pool pool(ranks.attach(), {1, 10});
  EXPECT_EQ(pool.num_growable(), 2u);
}

TEST(PoolTest, ARaisedLimitEndsADenial) {
  Rig rig(16);
  EXPECT_FALSE(rig.pool.ensure(4, rig.now()));
  rig.deny_everything();
  EXPECT_FALSE(rig.pool.ensure(4, rig.now()));
  rig.pool.set_limit(100 * 4096);
  EXPECT_EQ(rig.pool.num_growable(), 15u);
}

TEST(PoolTest, ColdestEmptiesWholeExtentsAndStopsAtWhatIsAsked) {
  Rig rig(32, 4);
  ASSERT_TRUE(rig.have(16));
  rig.take(16);
  // Extent 1: 4 to 7 all cached; extent 2: 8 and 9 cached, 10 used; extent 3: all cached, later.
  for (const std::uint32_t block : {8U, 5U, 12U, 4U, 13U, 9U, 6U, 7U, 14U, 15U}) {
    ASSERT_TRUE(rig.pool.give_cached(block));
  }
  rig.give({11});
  EXPECT_TRUE(rig.pool.coldest(10).empty());
  EXPECT_EQ(rig.pool.coldest(9), (Blocks{8})) << "its extent would stay busy: it goes alone";
  EXPECT_EQ(rig.pool.coldest(8), (Blocks{8, 4, 5, 6, 7})) << "5 takes its extent with it";
  EXPECT_EQ(rig.pool.coldest(5), (Blocks{8, 4, 5, 6, 7}));
  EXPECT_EQ(rig.pool.coldest(4), (Blocks{8, 4, 5, 6, 7, 12, 13, 14, 15}));
  Blocks all = rig.pool.coldest(0);
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, (Blocks{4, 5, 6, 7, 8, 9, 12, 13, 14, 15}));
}

TEST(PoolTest, ColdestAlsoBoundsTheExtentsThatOnlyTheCacheHolds) {
  Rig rig(64, 4);
  ASSERT_TRUE(rig.have(32));
  rig.take(32);
  // One cached block in each of six extents; the last one has a used block too.
  for (std::uint32_t extent = 1; extent < 7; ++extent) {
    for (std::uint32_t block = 4 * extent + 1; block < 4 * extent + 4; ++block) {
      if (extent != 6 || block != 27) {
        rig.give({block});
      }
    }
    ASSERT_TRUE(rig.pool.give_cached(4 * extent));
  }
  EXPECT_EQ(rig.pool.cache_held_extents(), 5u);
  EXPECT_TRUE(rig.pool.coldest(20).empty());
  EXPECT_EQ(rig.pool.coldest(8), (Blocks{4, 8, 12})) << "eight blocks would fit in two extents";
  for (const std::uint32_t block : rig.pool.coldest(8)) EXPECT_TRUE(rig.pool.forget(block));
  EXPECT_EQ(rig.pool.cache_held_extents(), 2u);
  EXPECT_TRUE(rig.pool.remove(16)) << "a hit";
  EXPECT_EQ(rig.pool.cache_held_extents(), 1u);
  EXPECT_TRUE(rig.pool.remove(21)) << "a free block beside a cached one";
  EXPECT_EQ(rig.pool.cache_held_extents(), 0u);
  rig.give({21});
  EXPECT_EQ(rig.pool.cache_held_extents(), 1u);
}

TEST(PoolTest, ColdestTakesBlocksOfPinnedExtentsOneByOne) {
  Rig rig(8, 4);
  rig.take(4);
  for (std::uint32_t block = 0; block < 4; ++block) ASSERT_TRUE(rig.pool.give_cached(block));
  EXPECT_EQ(rig.pool.coldest(2), (Blocks{0, 1}));
}

TEST(PoolTest, ABlockIsFencedByTheStepInWhichItsExtentBecameEmpty) {
  Rig rig(32, 2);
  ASSERT_TRUE(rig.have(12));
  rig.take(12);
  rig.pool.begin_step(5);
  rig.give({10});
  rig.pool.begin_step(6);
  rig.give({11});
  ASSERT_TRUE(rig.pool.give_cached(8));
  rig.give({9});
  rig.pool.begin_step(7);
  ASSERT_TRUE(rig.pool.forget(8));
  rig.pool.begin_step(8);
  rig.give({6, 7});
  rig.pool.balance(true);
  const Row& row = rig.ranks.row(0);
  EXPECT_EQ(row.state(5), ExtentState::releasing);
  EXPECT_EQ(row.fence(5), 6u);
  EXPECT_EQ(row.state(4), ExtentState::releasing);
  EXPECT_EQ(row.fence(4), 7u);
  EXPECT_EQ(row.state(3), ExtentState::committed) << "the slack";
}

TEST(PoolTest, EveryRankIsToldWhatIsProcessed) {
  Rig rig(16, 1, 3);
  rig.pool.processed(9);
  for (std::size_t rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(rig.ranks.row(rank).header().processed_step, 9u);
  }
}

TEST(PoolTest, ABusyEngineKeepsSlackAheadAccordingToItsGrowth) {
  Rig rig(100, 1, 1, {2, 8});
  rig.pool.balance(false);
  EXPECT_EQ(rig.pool.extents().wanted(), 2u);
  rig.ranks.serve();
  ASSERT_TRUE(rig.have(4));
  rig.take(4);  // one of them pinned
  rig.pool.balance(false);
  EXPECT_EQ(rig.pool.slack_target(), 6u);
  rig.ranks.serve();
  rig.pool.balance(false);
  EXPECT_EQ(rig.pool.extents().empty(), 6u);
  EXPECT_EQ(rig.pool.extents().wanted(), 0u);
}

TEST(PoolTest, ABusyEngineGivesBackAQuarterOfTheExcessAStepAndAnIdleOneAllAtOnce) {
  for (const bool idle : {false, true}) {
    Rig rig(100, 1, 1, {1, 1});
    ASSERT_TRUE(rig.have(42));
    rig.pool.balance(idle);
    EXPECT_EQ(rig.pool.extents().releasing(), idle ? 40u : 10u);
    EXPECT_EQ(rig.ranks.row(0).state(41), ExtentState::releasing) << "the highest first";
    rig.settle(idle);
    EXPECT_EQ(rig.pool.extents().usable(), 2u);
  }
}

TEST(PoolTest, ABusyEngineKeepsAPartOfWhatItHasJustUsedAndAnIdleOneDoesNot) {
  Rig rig(200, 1, 1, {1, 1});
  ASSERT_TRUE(rig.have(100));
  rig.take(100);
  rig.settle(false);
  rig.give(range(90, 100));
  rig.settle(false);
  EXPECT_EQ(rig.pool.extents().empty(), 10u) << "all of them: 13 would be 15% of 90";
  rig.give(range(60, 90));
  rig.settle(false);
  EXPECT_EQ(rig.pool.extents().empty(), 9u) << "15% of 60";
  rig.settle(true);
  EXPECT_EQ(rig.pool.extents().empty(), 1u);
}

TEST(PoolTest, HalfEmptyExtentsCountAgainstWhatABusyEngineKeeps) {
  Rig rig(200, 2, 1, {1, 1});
  ASSERT_TRUE(rig.have(100));
  rig.take(100);
  rig.settle(false);
  Blocks every_other_pair;
  for (std::uint32_t block = 2; block < 80; block += 2) every_other_pair.push_back(block);
  every_other_pair.insert(every_other_pair.end(), {96, 97, 98, 99});
  rig.give(every_other_pair);
  rig.settle(false);
  EXPECT_EQ(rig.pool.extents().empty(), 1u) << "the slack";
}

TEST(PoolTest, CountsTheStepsThatSleptForMemoryAndForHowMany) {
  Rig rig(64, 1, 1, {0, 0});
  const RowHeader& header = rig.ranks.row(0).header();
  rig.pool.begin_step(1);
  EXPECT_FALSE(rig.pool.ensure(4, rig.now() + milliseconds(2)));
  EXPECT_EQ(header.waits, 1u);
  EXPECT_EQ(header.waited_extents, 3u) << "the pinned one is there";
  EXPECT_EQ(header.exposed_extents, 3u) << "no other step keeps the device busy";
  const std::uint64_t longest = header.longest_wait_ns;
  EXPECT_GE(longest, 2'000'000u);
  EXPECT_EQ(header.wait_ns, longest);
  rig.ranks.serve();
  rig.pool.begin_step(2);
  EXPECT_TRUE(rig.pool.ensure(4, rig.now()));
  EXPECT_EQ(header.waits, 1u) << "it was there by then";
  EXPECT_FALSE(rig.pool.ensure(6, rig.now()));
  EXPECT_FALSE(rig.pool.ensure(6, rig.now()));
  EXPECT_EQ(header.waits, 2u) << "one step";
  EXPECT_EQ(header.exposed_extents, 3u) << "step 1 is still with the device";
  rig.pool.processed(1);
  EXPECT_FALSE(rig.pool.ensure(6, rig.now()));
  EXPECT_GT(header.exposed_extents, 3u);
}

TEST(PoolTest, ABusyEngineDoesNotGiveBackAUnitThatItWouldAskForAgain) {
  Rig rig(400, 1, 1, {6, 6}, 8);
  ASSERT_TRUE(rig.have(200));
  rig.take(200);
  rig.pool.balance(false);
  rig.ranks.serve();
  rig.pool.balance(false);
  ASSERT_EQ(rig.pool.extents().empty(), 6u);
  rig.give({100});
  const std::uint32_t highest = rig.pool.extents().highest_empty();
  ASSERT_GT(rig.pool.extents().unit_of(highest).count, 1u) << "one too many, in a larger unit";
  for (int step = 0; step < 10; ++step) {
    rig.pool.balance(false);
    EXPECT_FALSE(rig.pool.in_flight());
    rig.ranks.serve();
  }
  rig.pool.balance(true);
  EXPECT_TRUE(rig.pool.in_flight()) << "an idle engine gives it back all the same";
}

TEST(PoolTest, ADeniedEngineDoesNotAskForSlack) {
  Rig rig(16, 1, 1, {4, 4});
  rig.pool.balance(false);
  rig.deny_everything();
  rig.pool.balance(false);
  EXPECT_TRUE(rig.pool.denied());
  EXPECT_EQ(rig.pool.extents().wanted(), 0u);
}

TEST(PoolTest, BalanceTellsTheRowWhatTheBlocksAreDoing) {
  Rig rig(16);
  ASSERT_TRUE(rig.have(6));
  rig.take(4);
  ASSERT_TRUE(rig.pool.give_cached(1));
  rig.pool.balance(false);
  const RowHeader& header = rig.ranks.row(0).header();
  EXPECT_EQ(header.used_blocks, 3u);
  EXPECT_EQ(header.cached_blocks, 1u);
  EXPECT_EQ(header.free_blocks, rig.pool.num_unhashed());
  EXPECT_EQ(header.slack_extents, rig.pool.slack_target());
}

TEST(PoolTest, BlocksOfAReleasedExtentAreNotHandedOut) {
  Rig rig(16);
  ASSERT_TRUE(rig.have(8));
  rig.pool.balance(true);
  EXPECT_EQ(rig.pool.in_order(), (Blocks{0, 1}));
  EXPECT_FALSE(rig.pool.remove(5));
}

TEST(PoolTest, ARankThatDiedIsNamed) {
  Rig rig(16, 1, 3);
  EXPECT_EQ(rig.pool.dead_row(), "");
  const std::string path = rig.pool.row(1).path();
  rig.ranks.lose(1);
  EXPECT_EQ(rig.pool.dead_row(), path);
}

// What every block is, kept apart from the pool's own account.
struct Model {
  std::set<std::uint32_t> used;
  std::vector<std::uint32_t> cached;  // oldest first

  void uncache(std::uint32_t block) { std::erase(cached, block); }
  std::uint32_t any_used(Dice& dice) const {
    auto at = used.lower_bound(dice.between(0, 200));
    return at == used.end() ? *used.begin() : *at;
  }
  std::uint32_t any_cached(Dice& dice) const {
    return cached[dice.between(0, static_cast<std::uint32_t>(cached.size()) - 1)];
  }
};

TEST(PoolTest, AnySequenceKeepsEveryBlockInOnePlace) {
  for (std::uint64_t seed = first_seed(), last = seed + 25; seed < last; ++seed) {
    SCOPED_TRACE(describe_seed(seed));
    Dice dice(seed);
    const std::uint32_t blocks = dice.between(20, 200);
    Rig rig(blocks, dice.between(1, 5), dice.between(1, 3),
            {dice.between(0, 2), dice.between(2, 9)}, 4);
    Pool& pool = rig.pool;
    Model model;
    std::uint64_t step = 0;
    for (int turn = 0; turn < 800; ++turn) {
      switch (dice.between(0, 9)) {
        case 0:
        case 1:
        case 2: {
          const std::uint32_t free = pool.num_unhashed();
          const std::uint32_t block = pool.take();
          if (block == Pool::kNone) {
            ASSERT_TRUE(free == 0 && model.cached.empty());
            break;
          }
          if (free == 0) {
            ASSERT_EQ(block, model.cached.front());
          }
          model.uncache(block);
          ASSERT_TRUE(model.used.insert(block).second) << "handed out twice";
          break;
        }
        case 3:
          if (!model.used.empty()) {
            const std::uint32_t block = model.any_used(dice);
            ASSERT_TRUE(pool.give(block));
            model.used.erase(block);
          }
          break;
        case 4:
          if (!model.used.empty()) {
            const std::uint32_t block = model.any_used(dice);
            ASSERT_TRUE(pool.give_cached(block));
            model.used.erase(block);
            model.cached.push_back(block);
          }
          break;
        case 5:
          if (!model.cached.empty()) {
            const std::uint32_t block = model.any_cached(dice);
            model.uncache(block);
            if (dice.chance(50)) {
              ASSERT_TRUE(pool.forget(block));
            } else {
              ASSERT_TRUE(pool.remove(block));
              model.used.insert(block);
            }
          }
          break;
        case 6:
          (void)pool.ensure(dice.between(0, blocks), rig.now());
          break;
        case 7:
          pool.begin_step(++step);
          pool.balance(dice.chance(30));
          break;
        case 8:
          if (dice.chance(20)) {
            rig.deny_everything();
          } else {
            rig.ranks.serve();
          }
          break;
        default:
          for (const std::uint32_t block :
               pool.coldest(dice.between(0, static_cast<std::uint32_t>(model.cached.size())))) {
            ASSERT_TRUE(pool.forget(block));
            model.uncache(block);
          }
          break;
      }
      ASSERT_EQ(pool.num_used(), model.used.size());
      ASSERT_EQ(pool.num_cached(), model.cached.size());
      ASSERT_EQ(pool.num_used() + pool.num_unhashed() + pool.num_cached(), pool.num_usable());
      const Blocks order = pool.in_order();
      ASSERT_EQ(order.size(), pool.num_free());
      ASSERT_TRUE(std::is_sorted(order.begin(), order.begin() + pool.num_unhashed()));
      ASSERT_TRUE(std::equal(model.cached.begin(), model.cached.end(),
                             order.begin() + pool.num_unhashed(), order.end()));
      for (const std::uint32_t block : order) {
        ASSERT_FALSE(model.used.contains(block));
        for (std::size_t rank = 0; rank < pool.extents().ranks(); ++rank) {
          ASSERT_EQ(pool.row(rank).state(pool.extents().extent_of(block)), ExtentState::committed);
        }
      }
    }
    for (const std::uint32_t block : model.used) ASSERT_TRUE(pool.give(block));
    for (const std::uint32_t block : pool.coldest(0)) ASSERT_TRUE(pool.forget(block));
    for (int n = 0; n < 4; ++n) rig.settle();
    EXPECT_LE(pool.extents().usable(), 1 + pool.slack_target());
    EXPECT_FALSE(pool.in_flight());
  }
}

}  // namespace
}  // namespace kvcached
