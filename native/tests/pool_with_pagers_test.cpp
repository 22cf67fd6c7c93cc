// The pool and real pagers together, over one to three ranks. What the pool decides by itself is in
// pool_test.cpp.

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "kvcached/pool.hpp"
#include "sample_geometry.hpp"
#include "simulated_ranks.hpp"

namespace kvcached {
namespace {

using Call = SimDriver::Call;
using Clock = Pool::Clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::size_t kGranule = 4096;

Clock::time_point soon() { return Clock::now() + seconds(10); }

/// Lets an idle engine give back what it does not need. Returns whether all of it is gone.
bool settle(Pool& pool) {
  const auto deadline = soon();
  do {
    pool.balance(true);
    if (!pool.in_flight() && pool.extents().empty() <= pool.slack_target()) return true;
    pool.wait(Clock::now() + milliseconds(5));
  } while (Clock::now() < deadline);
  return false;
}

class PoolWithPagersTest : public testing::TestWithParam<std::size_t> {
 protected:
  static Geometry geometry() { return layers_apart(2, 64, kGranule / 2, 2); }

  void start(std::size_t capacity_granules = 1000, SlackBounds slack = {0, 4}) {
    ranks = std::make_unique<SimulatedRanks>(
        GetParam(), geometry(),
        SimDriver::Options{.capacity_bytes = capacity_granules * kGranule,
                           .granularity = kGranule});
    pool = std::make_unique<Pool>(ranks->attach(), slack);
  }
  void TearDown() override {
    if (pool != nullptr) {
      EXPECT_EQ(pool->num_used() + pool->num_unhashed() + pool->num_cached(), pool->num_usable());
    }
  }

  std::vector<std::uint32_t> take(std::uint32_t count) {
    std::vector<std::uint32_t> blocks;
    for (std::uint32_t n = 0; n < count; ++n) {
      const std::uint32_t block = pool->take();
      if (block == Pool::kNone) break;
      for (std::size_t rank = 0; rank < ranks->size(); ++rank) {
        EXPECT_EQ(pool->row(rank).state(pool->extents().extent_of(block)), ExtentState::committed);
      }
      EXPECT_TRUE(ranks->touch(block)) << block;
      blocks.push_back(block);
    }
    return blocks;
  }
  void give(const std::vector<std::uint32_t>& blocks) {
    for (const std::uint32_t block : blocks) EXPECT_TRUE(pool->give(block));
  }
  void finish_step(std::uint64_t step) {
    ranks->finish(step);
    pool->processed(step);
  }
  std::uint64_t mapped(std::size_t rank) const { return ranks->driver(rank).mapped_bytes(); }

  std::unique_ptr<SimulatedRanks> ranks;
  std::unique_ptr<Pool> pool;
};

TEST_P(PoolWithPagersTest, EveryBlockHandedOutHasMemoryOnEveryRank) {
  start();
  ASSERT_TRUE(pool->ensure(64, soon()));
  const auto blocks = take(64);
  EXPECT_EQ(blocks.size(), 64u);
  EXPECT_EQ(std::set(blocks.begin(), blocks.end()).size(), 64u);
  EXPECT_EQ(pool->take(), Pool::kNone);
  for (std::size_t rank = 0; rank < ranks->size(); ++rank) EXPECT_EQ(mapped(rank), 64 * kGranule);
}

TEST_P(PoolWithPagersTest, BlocksAreZeroWhenTheirExtentComesAndComesAgain) {
  start();
  for (std::uint64_t step = 1; step <= 3; ++step) {
    pool->begin_step(step);
    ASSERT_TRUE(pool->ensure(20, soon()));
    for (const std::uint32_t block : pool->in_order()) {
      if (block >= 2) {
        EXPECT_TRUE(ranks->reads_as_zero(block)) << block;
      }
    }
    give(take(20));
    finish_step(step);
    ASSERT_TRUE(settle(*pool));
  }
}

TEST_P(PoolWithPagersTest, MemoryComesBackWhenTheStepIsOverAndNotBefore) {
  start();
  pool->begin_step(1);
  ASSERT_TRUE(pool->ensure(20, soon()));
  give(take(20));
  for (int n = 0; n < 5; ++n) {
    pool->balance(true);
    std::this_thread::sleep_for(milliseconds(2));
  }
  EXPECT_GT(pool->extents().releasing(), 0u);
  EXPECT_EQ(mapped(0), 20 * kGranule) << "step 1 may still read it";
  finish_step(1);
  ASSERT_TRUE(settle(*pool));
  for (std::size_t rank = 0; rank < ranks->size(); ++rank) EXPECT_EQ(mapped(rank), 2 * kGranule);
  EXPECT_EQ(pool->num_usable(), 2u);
}

TEST_P(PoolWithPagersTest, OneRankOutOfMemoryRollsTheOthersBackAndRecovers) {
  start();
  const std::size_t poor = GetParam() - 1;
  ranks->driver(poor).set_capacity(4 * kGranule);
  pool->begin_step(1);
  EXPECT_FALSE(pool->ensure(10, soon()));
  EXPECT_TRUE(pool->denied());
  EXPECT_EQ(pool->num_growable(), 0u);
  EXPECT_EQ(pool->num_usable(), 4u);
  const auto deadline = soon();
  while (pool->in_flight() && Clock::now() < deadline) {
    pool->balance(false);
    std::this_thread::sleep_for(milliseconds(1));
  }
  for (std::size_t rank = 0; rank < ranks->size(); ++rank) EXPECT_EQ(mapped(rank), 4 * kGranule);
  ranks->driver(poor).set_capacity(1000 * kGranule);
  std::this_thread::sleep_for(milliseconds(110));
  pool->begin_step(2);
  EXPECT_GT(pool->num_growable(), 0u);
  EXPECT_TRUE(pool->ensure(10, soon()));
}

TEST_P(PoolWithPagersTest, WhatARollBackGivesBackDoesNotEndTheDenial) {
  start();
  ranks->driver(GetParam() - 1).set_capacity(4 * kGranule);
  pool->begin_step(1);
  EXPECT_FALSE(pool->ensure(3, soon()) && pool->ensure(10, soon()));
  const std::uint64_t denials = pool->row(GetParam() - 1).header().denials;
  ASSERT_GT(denials, 0u);
  // Steps that follow one another closely do not ask again and again.
  const auto begin = Clock::now();
  std::uint64_t step = 1;
  while (Clock::now() - begin < milliseconds(40)) {
    pool->begin_step(++step);
    (void)pool->ensure(10, Clock::now() + milliseconds(1));
    std::this_thread::sleep_for(milliseconds(1));
  }
  if (Clock::now() - begin < milliseconds(90)) {
    EXPECT_EQ(pool->row(GetParam() - 1).header().denials, denials);
  }
}

TEST_P(PoolWithPagersTest, MemoryGivenBackEndsTheDenial) {
  start(20, {0, 0});
  pool->begin_step(1);
  ASSERT_TRUE(pool->ensure(20, soon()));
  const auto blocks = take(20);
  EXPECT_FALSE(pool->ensure(1, soon()));
  EXPECT_EQ(pool->num_growable(), 0u);
  give(blocks);
  finish_step(1);
  ASSERT_TRUE(settle(*pool));
  // The epoch is counted right after the extent is gone.
  const auto deadline = soon();
  for (std::uint64_t step = 2; pool->denied() && Clock::now() < deadline; ++step) {
    pool->begin_step(step);
  }
  EXPECT_EQ(pool->num_growable(), 62u);
  EXPECT_TRUE(pool->ensure(20, soon()));
}

TEST_P(PoolWithPagersTest, WhicheverCallFailsARequestIsServedInTheEnd) {
  start();
  std::uint64_t step = 0;
  for (std::uint64_t n = 1; n <= 16; ++n) {
    SCOPED_TRACE(n);
    pool->begin_step(++step);
    ranks->driver(n % GetParam()).fail_call(n, Status::driver_error);
    const auto deadline = soon();
    while (!pool->ensure(10, Clock::now() + milliseconds(50)) && Clock::now() < deadline) {
      pool->set_limit(0);  // ends a denial at once
    }
    ASSERT_GE(pool->num_unhashed(), 10u);
    give(take(10));
    ranks->driver(n % GetParam()).clear_failures();
    finish_step(step);
    ASSERT_TRUE(settle(*pool));
  }
}

TEST_P(PoolWithPagersTest, LargeUnitsComeAndGoWhole) {
  ranks = std::make_unique<SimulatedRanks>(
      GetParam(), block_major(2, 300, kGranule / 2, 1),
      SimDriver::Options{.capacity_bytes = 1000 * kGranule, .granularity = kGranule}, 8 * kGranule);
  pool = std::make_unique<Pool>(ranks->attach(), SlackBounds{0, 0});
  pool->begin_step(1);
  ASSERT_TRUE(pool->ensure(150, soon()));
  const auto some = take(150);
  EXPECT_EQ(ranks->driver(0).snapshot().mappings.size(), 150u);
  ASSERT_TRUE(pool->ensure(100, soon()));
  const auto more = take(100);
  const std::size_t mappings = ranks->driver(0).snapshot().mappings.size();
  EXPECT_LT(mappings, 150u + 30u) << "one handle for several extents";
  give(more);
  ASSERT_TRUE(pool->remove(more[50]));
  finish_step(1);
  ASSERT_TRUE(settle(*pool));
  const Row::Request unit = pool->extents().unit_of(pool->extents().extent_of(more[50]));
  EXPECT_GT(unit.count, 1u);
  for (std::size_t rank = 0; rank < ranks->size(); ++rank) {
    EXPECT_EQ(mapped(rank), (150 + unit.count) * kGranule);
  }
  give({more[50]});
  give(some);
  ASSERT_TRUE(settle(*pool));
  for (std::size_t rank = 0; rank < ranks->size(); ++rank) EXPECT_EQ(mapped(rank), kGranule);
}

TEST_P(PoolWithPagersTest, TheLimitHoldsOnEveryRank) {
  start();
  pool->set_limit(20 * kGranule);
  EXPECT_FALSE(pool->ensure(64, soon()));
  EXPECT_EQ(pool->num_usable(), 20u);
  for (std::size_t rank = 0; rank < ranks->size(); ++rank) {
    EXPECT_LE(ranks->driver(rank).peak_created_bytes(), 20 * kGranule);
  }
  pool->set_limit(0);
  EXPECT_TRUE(pool->ensure(64, soon()));
}

TEST_P(PoolWithPagersTest, AnEngineCanShareGranulesBetweenItsBlocks) {
  ranks = std::make_unique<SimulatedRanks>(
      GetParam(), block_major(1, 30, kGranule * 3 / 2, 1),
      SimDriver::Options{.capacity_bytes = 45 * kGranule, .granularity = kGranule});
  pool = std::make_unique<Pool>(ranks->attach(), SlackBounds{0, 0});
  pool->begin_step(1);
  ASSERT_TRUE(pool->ensure(30, soon()));
  give(take(30));
  finish_step(1);
  ASSERT_TRUE(settle(*pool));
  EXPECT_EQ(mapped(0), 2 * kGranule);
  ASSERT_TRUE(pool->ensure(30, soon()));
  for (std::uint32_t block = 1; block < 30; ++block) {
    EXPECT_TRUE(ranks->reads_as_zero(block)) << block;
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, PoolWithPagersTest, testing::Values(1, 2, 3));

TEST(PoolOnTheHostTest, BlocksAreRealMemoryThatComesZeroedAndGoes) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "pool and pager meet in two mappings of one file, where it cannot follow";
#endif
  const TemporaryDirectory directory;
  constexpr std::uint64_t kBlock = 64 << 10;
  auto driver = make_host_driver(64 * kBlock);
  ASSERT_EQ(driver->probe(), Status::ok) << driver->last_error();
  PagerOptions options;
  options.path = directory / "engine.0.row";
  Pager pager(std::move(driver), block_major(2, 32, kBlock / 2, 1), options);
  std::string error;
  ASSERT_EQ(pager.start(&error), Status::ok) << error;
  std::vector<std::unique_ptr<Row>> rows(1);
  ASSERT_EQ(Row::attach(options.path, &rows[0], &error), Status::ok) << error;
  Pool pool(std::move(rows), {0, 2});
  for (std::uint64_t step = 1; step <= 5; ++step) {
    pool.begin_step(step);
    ASSERT_TRUE(pool.ensure(32, soon())) << pager.last_error();
    std::vector<std::uint32_t> blocks;
    while (pool.num_free() > 0) {
      const std::uint32_t block = pool.take();
      char* const bytes = static_cast<char*>(pager.backing().region(0)) + block * kBlock;
      if (block > 0) {
        EXPECT_EQ(std::count(bytes, bytes + kBlock, 0), static_cast<std::ptrdiff_t>(kBlock));
      }
      std::fill(bytes, bytes + kBlock, static_cast<char>(0x5a));
      blocks.push_back(block);
    }
    EXPECT_EQ(blocks.size(), 32u);
    for (const std::uint32_t block : blocks) EXPECT_TRUE(pool.give(block));
    pager.launched(step, {});
    pool.processed(step);
    ASSERT_TRUE(settle(pool));
    EXPECT_EQ(pool.row(0).header().mapped_bytes, kBlock);
  }
}

}  // namespace
}  // namespace kvcached
