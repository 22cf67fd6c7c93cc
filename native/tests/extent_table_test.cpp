#include "kvcached/extent_table.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <set>
#include <vector>

#include "hand_played_ranks.hpp"
#include "test_seed.hpp"

namespace kvcached {
namespace {

RowFacts facts_for(std::uint32_t blocks, std::uint32_t blocks_per_extent = 1,
                   std::uint32_t max_unit = 1) {
  RowFacts facts;
  facts.num_blocks = blocks;
  facts.blocks_per_extent = blocks_per_extent;
  facts.pinned_extents = 1;
  facts.max_unit_extents = max_unit;
  return facts;
}

/// An extent table over ranks whose pagers the test plays.
struct Rig {
  Rig(std::size_t count, const RowFacts& facts) : ranks(count, facts), table(ranks.attach()) {}

  ExtentTable::Changes poll() {
    ExtentTable::Changes changes;
    table.poll(&changes);
    return changes;
  }
  void grow(std::uint32_t extents) {
    while (extents > 0) {
      const std::uint32_t taken = table.want(extents);
      if (taken == 0) return;
      extents -= taken;
    }
    ranks.serve();
    poll();
  }
  void expect_sound() const {
    EXPECT_EQ(table.usable() + table.wanted() + table.releasing() + table.absent(),
              table.num_extents());
    EXPECT_LE(table.empty() + table.pinned(), table.usable());
  }

  HandPlayedRanks ranks;
  ExtentTable table;
};

TEST(ExtentTableTest, OnlyThePinnedExtentsAreUsableAtFirst) {
  const Rig rig(2, facts_for(10, 4));
  EXPECT_EQ(rig.table.num_extents(), 3u);
  EXPECT_EQ(rig.table.usable(), 1u);
  EXPECT_EQ(rig.table.usable_blocks(), 4u);
  EXPECT_EQ(rig.table.empty(), 0u) << "pinned extents are never released";
  EXPECT_EQ(rig.table.absent(), 2u);
}

TEST(ExtentTableTest, TheLastExtentHasFewerBlocks) {
  Rig rig(1, facts_for(10, 4));
  EXPECT_EQ(rig.table.end_block(2), 10u);
  EXPECT_EQ(rig.table.absent_blocks(1), 4u);
  EXPECT_EQ(rig.table.absent_blocks(2), 6u);
  EXPECT_EQ(rig.table.want(1), 1u);
  EXPECT_EQ(rig.table.wanted_blocks(), 4u);
  EXPECT_EQ(rig.table.want(1), 1u);
  EXPECT_EQ(rig.table.wanted_blocks(), 6u);
  EXPECT_EQ(rig.table.absent_blocks(0), 0u);
  rig.ranks.serve();
  rig.poll();
  EXPECT_EQ(rig.table.usable_blocks(), 10u);
  EXPECT_EQ(rig.table.want(1), 0u);
}

TEST(ExtentTableTest, TheLowestAbsentExtentIsWantedFirstOnEveryRank) {
  Rig rig(3, facts_for(8));
  EXPECT_EQ(rig.table.want(1), 1u);
  EXPECT_EQ(rig.table.want(1), 1u);
  for (std::size_t rank = 0; rank < 3; ++rank) {
    const auto requests = rig.ranks.requests(rank);
    ASSERT_EQ(requests.size(), 2u);
    EXPECT_EQ(requests[0].first, 1u);
    EXPECT_EQ(requests[1].first, 2u);
    EXPECT_EQ(rig.ranks.row(rank).state(1), ExtentState::wanted);
  }
}

TEST(ExtentTableTest, AnExtentIsUsableOnlyWhenEveryRankHasCommittedIt) {
  Rig rig(3, facts_for(8));
  rig.table.want(1);
  for (std::size_t rank = 0; rank < 3; ++rank) {
    EXPECT_TRUE(rig.poll().usable.empty());
    EXPECT_EQ(rig.table.usable(), 1u);
    rig.ranks.answer(rank, {1, 1}, ExtentState::committed);
  }
  const auto changes = rig.poll();
  ASSERT_EQ(changes.usable.size(), 1u);
  EXPECT_EQ(changes.usable[0].first, 1u);
  EXPECT_FALSE(changes.denied);
  EXPECT_EQ(rig.table.usable(), 2u);
  EXPECT_EQ(rig.table.empty(), 1u);
  EXPECT_EQ(rig.table.pending(), 0u);
}

TEST(ExtentTableTest, OneRanksDenialRollsTheOthersBackInWhateverOrderTheyAnswer) {
  for (const std::vector<std::size_t>& order :
       {std::vector<std::size_t>{0, 1, 2}, {2, 1, 0}, {1, 0, 2}}) {
    Rig rig(3, facts_for(8));
    rig.table.want(1);
    bool denied = false;
    for (const std::size_t rank : order) {
      (void)rig.ranks.requests(rank);
      rig.ranks.answer(rank, {1, 1}, rank == 1 ? ExtentState::denied : ExtentState::committed);
      const auto changes = rig.poll();
      EXPECT_TRUE(changes.usable.empty());
      denied = denied || changes.denied;
    }
    EXPECT_TRUE(denied);
    EXPECT_EQ(rig.ranks.row(1).state(1), ExtentState::absent);
    EXPECT_TRUE(rig.ranks.requests(1).empty());
    EXPECT_EQ(rig.table.releasing(), 1u);
    EXPECT_EQ(rig.table.wanted(), 0u);
    for (const std::size_t rank : {0U, 2U}) {
      EXPECT_EQ(rig.ranks.row(rank).state(1), ExtentState::releasing);
      EXPECT_EQ(rig.ranks.row(rank).fence(1), kNeverUsable) << "no step can have touched it";
    }
    EXPECT_EQ(rig.table.absent(), 6u) << "not to be wanted again before it is gone everywhere";
    rig.ranks.serve();
    rig.poll();
    EXPECT_EQ(rig.table.absent(), 7u);
    rig.expect_sound();
    rig.grow(1);
    EXPECT_EQ(rig.table.usable(), 2u);
  }
}

TEST(ExtentTableTest, ADenialByEveryRankNeedsNoRollback) {
  Rig rig(2, facts_for(8));
  rig.table.want(1);
  for (std::size_t rank = 0; rank < 2; ++rank) {
    (void)rig.ranks.requests(rank);
    rig.ranks.answer(rank, {1, 1}, ExtentState::denied);
  }
  EXPECT_TRUE(rig.poll().denied);
  EXPECT_EQ(rig.table.absent(), 7u);
  EXPECT_EQ(rig.table.pending(), 0u);
  EXPECT_EQ(rig.ranks.serve(), 0u);
}

TEST(ExtentTableTest, AReleasedExtentIsAbsentOnlyWhenEveryRankSaysSo) {
  Rig rig(2, facts_for(8));
  rig.grow(1);
  rig.table.mark_busy(1);
  rig.table.mark_empty(1, 42);
  ASSERT_EQ(rig.table.highest_empty(), 1u);
  rig.table.release(1);
  EXPECT_EQ(rig.table.usable_blocks(), 1u);
  for (std::size_t rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(rig.ranks.row(rank).fence(1), 42u);
    EXPECT_EQ(rig.table.releasing(), 1u);
    rig.ranks.answer(rank, {1, 1}, ExtentState::absent);
    EXPECT_EQ(rig.poll().released, rank == 1);
  }
  EXPECT_EQ(rig.table.absent(), 7u);
}

TEST(ExtentTableTest, AnExtentThatWasNeverUsedHasNoFence) {
  Rig rig(1, facts_for(8));
  rig.grow(1);
  rig.table.mark_busy(1);
  rig.table.mark_empty(1, 42);
  rig.table.release(1);
  rig.ranks.serve();
  rig.poll();
  rig.grow(1);
  rig.table.release(1);
  EXPECT_EQ(rig.ranks.row(0).fence(1), 0u);
}

TEST(ExtentTableTest, BusyExtentsAreNotEmpty) {
  Rig rig(1, facts_for(8));
  rig.grow(3);
  EXPECT_EQ(rig.table.empty(), 3u);
  EXPECT_EQ(rig.table.highest_empty(), 3u);
  rig.table.mark_busy(3);
  EXPECT_EQ(rig.table.highest_empty(), 2u);
  rig.table.mark_busy(0);
  EXPECT_EQ(rig.table.empty(), 2u) << "a pinned extent is no empty one";
  rig.table.mark_empty(3, 1);
  EXPECT_EQ(rig.table.highest_empty(), 3u);
}

TEST(ExtentTableTest, WhoOwesAnAnswerIsARankThatIsAskedForMemoryBeforeOneThatReleases) {
  Rig rig(2, facts_for(8));
  EXPECT_EQ(rig.table.owing(), nullptr);
  rig.grow(1);
  rig.table.release(1);
  EXPECT_EQ(rig.table.owing(), &rig.table.row(0));
  rig.table.want(1);
  EXPECT_EQ(rig.table.owing(), &rig.table.row(0));
  (void)rig.ranks.requests(0);
  rig.ranks.answer(0, {2, 1}, ExtentState::committed);
  EXPECT_EQ(rig.table.owing(), &rig.table.row(1));
  rig.ranks.answer(1, {2, 1}, ExtentState::committed);
  EXPECT_EQ(rig.table.owing(), nullptr) << "an answer is there: sleeping would miss it";
  rig.poll();
  EXPECT_EQ(rig.table.owing(), &rig.table.row(0)) << "the release goes on";
}

TEST(ExtentTableTest, UnitsGrowOnlyWithWhatIsInUseAndAreAlignedPowersOfTwo) {
  Rig rig(1, facts_for(513, 1, 16));
  for (int n = 0; n < 64; ++n) EXPECT_EQ(rig.table.want(64), 1u) << "nothing is in use";
  rig.ranks.serve();
  rig.poll();
  for (std::uint32_t extent = 1; extent < 65; ++extent) rig.table.mark_busy(extent);
  std::set<std::uint32_t> sizes;
  std::uint32_t last = 64;
  while (rig.table.absent() > 100) {
    const std::uint32_t in_use = rig.table.usable() - 1 - rig.table.empty();
    const std::uint32_t size = rig.table.want(1000);
    const Row::Request unit = rig.table.unit_of(last + 1);
    EXPECT_EQ(unit.first, last + 1) << "the lowest absent one";
    EXPECT_EQ(unit.count, size);
    EXPECT_TRUE(std::has_single_bit(size));
    EXPECT_EQ(unit.first % size, 0u);
    EXPECT_LE(size, std::max(1U, in_use / 16));
    EXPECT_LE(size, 16u);
    sizes.insert(size);
    rig.ranks.serve();
    rig.poll();
    for (std::uint32_t extent = unit.first; extent < unit.first + size; ++extent) {
      rig.table.mark_busy(extent);
    }
    last += size;
  }
  EXPECT_EQ(*sizes.rbegin(), 16u);
  EXPECT_EQ(rig.table.want(3), 2u) << "no more than was asked";
  rig.expect_sound();
}

TEST(ExtentTableTest, WhatIsNeededAtOnceComesInLargeUnitsThoughNothingIsInUse) {
  Rig rig(1, facts_for(4097, 1, 32));
  for (const std::uint32_t few : {1u, 64u, 255u}) {
    EXPECT_EQ(rig.table.want(few, few), 1u) << "a hundred handles cost little";
  }
  // One, two, four and so on, until the addresses are aligned.
  std::uint32_t units = 0;
  std::uint32_t largest = 0;
  for (std::uint32_t left = 4093; left > 0; ++units) {
    const std::uint32_t size = rig.table.want(left, 4096);
    ASSERT_NE(size, 0u);
    largest = std::max(largest, size);
    left -= size;
  }
  EXPECT_EQ(largest, 32u);
  EXPECT_LE(units, 140u);
}

TEST(ExtentTableTest, AUnitIsEmptyOnlyWhenAllItsExtentsAreAndIsReleasedWhole) {
  Rig rig(2, facts_for(200, 1, 4));
  while (rig.table.usable() < 100) {
    rig.grow(1);
    rig.table.mark_busy(rig.table.usable() - 1);
  }
  ASSERT_EQ(rig.table.want(4), 4u);
  ASSERT_EQ(rig.table.unit_of(102).first, 100u);
  rig.ranks.serve();
  ASSERT_EQ(rig.poll().usable.size(), 1u);
  EXPECT_EQ(rig.table.empty(), 4u);
  rig.table.mark_busy(101);
  rig.table.mark_busy(103);
  EXPECT_EQ(rig.table.empty(), 0u) << "one block pins its whole unit";
  rig.table.mark_empty(101, 5);
  EXPECT_EQ(rig.table.highest_empty(), ExtentTable::kNone);
  rig.table.mark_empty(103, 7);
  EXPECT_EQ(rig.table.highest_empty(), 100u);
  EXPECT_EQ(rig.table.empty(), 4u);
  rig.table.release(100);
  for (std::size_t rank = 0; rank < 2; ++rank) {
    const auto requests = rig.ranks.requests(rank);
    ASSERT_EQ(requests.size(), 1u);
    EXPECT_EQ(requests[0].first, 100u);
    EXPECT_EQ(requests[0].count, 4u);
    for (std::uint32_t extent = 100; extent < 104; ++extent) {
      EXPECT_EQ(rig.ranks.row(rank).state(extent), ExtentState::releasing);
      EXPECT_EQ(rig.ranks.row(rank).fence(extent), 7u);
    }
    rig.ranks.answer(rank, {100, 4}, ExtentState::absent);
  }
  rig.poll();
  EXPECT_EQ(rig.table.absent(), 100u);
  rig.expect_sound();
}

TEST(ExtentTableTest, TheSmallestRankBoundsTheUnits) {
  HandPlayedRanks ranks(2, facts_for(100, 1, 8));
  ranks.row(1).header().facts.max_unit_extents = 2;
  ExtentTable table(ranks.attach());
  ExtentTable::Changes changes;
  for (int n = 0; n < 63; ++n) table.want(1);
  ranks.serve();
  table.poll(&changes);
  for (std::uint32_t extent = 1; extent < 64; ++extent) table.mark_busy(extent);
  EXPECT_EQ(table.want(8), 2u);
}

TEST(ExtentTableTest, AnyOrderOfAnswersKeepsEveryExtentInOnePlace) {
  for (std::uint64_t seed = first_seed(), last = seed + 30; seed < last; ++seed) {
    SCOPED_TRACE(describe_seed(seed));
    Dice dice(seed);
    const std::size_t ranks = dice.between(1, 3);
    Rig rig(ranks, facts_for(dice.between(40, 150), dice.between(1, 3), 8));
    std::vector<std::vector<Row::Request>> asked(ranks);
    std::set<std::uint32_t> busy;
    std::uint64_t step = 0;
    for (int turn = 0; turn < 600; ++turn) {
      switch (dice.between(0, 5)) {
        case 0:
          rig.table.want(dice.between(1, 8));
          break;
        case 1: {
          const std::uint32_t first = rig.table.highest_empty();
          if (first != ExtentTable::kNone) rig.table.release(first);
          break;
        }
        case 2: {
          ExtentTable::Changes changes = rig.poll();
          for (const Row::Request unit : changes.usable) {
            for (std::uint32_t extent = unit.first; extent < unit.first + unit.count; ++extent) {
              for (std::size_t rank = 0; rank < ranks; ++rank) {
                ASSERT_EQ(rig.ranks.row(rank).state(extent), ExtentState::committed);
              }
              if (dice.chance(80)) {
                rig.table.mark_busy(extent);
                busy.insert(extent);
              }
            }
          }
          break;
        }
        case 3:
          if (!busy.empty()) {
            auto at = busy.lower_bound(dice.between(0, rig.table.num_extents()));
            if (at == busy.end()) at = busy.begin();
            rig.table.mark_empty(*at, ++step);
            busy.erase(at);
          }
          break;
        default: {
          const std::size_t rank = dice.between(0, static_cast<std::uint32_t>(ranks) - 1);
          for (const Row::Request unit : rig.ranks.requests(rank)) asked[rank].push_back(unit);
          if (asked[rank].empty()) break;
          // Not in the order in which they were asked: releases wait for their fences.
          std::swap(
              asked[rank][dice.between(0, static_cast<std::uint32_t>(asked[rank].size()) - 1)],
              asked[rank].back());
          const Row::Request unit = asked[rank].back();
          asked[rank].pop_back();
          const bool wanted = rig.ranks.row(rank).state(unit.first) == ExtentState::wanted;
          rig.ranks.answer(rank, unit,
                           !wanted           ? ExtentState::absent
                           : dice.chance(25) ? ExtentState::denied
                                             : ExtentState::committed);
          break;
        }
      }
      rig.expect_sound();
      for (const std::uint32_t extent : busy) {
        for (std::size_t rank = 0; rank < ranks; ++rank) {
          ASSERT_EQ(rig.ranks.row(rank).state(extent), ExtentState::committed);
        }
      }
      if (testing::Test::HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace kvcached
