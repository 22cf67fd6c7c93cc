// A pager that leaves the zeroing of fresh memory to the worker's stream, ahead of the steps.

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "borrowed_driver.hpp"
#include "kvcached/pager.hpp"
#include "kvcached/pool.hpp"
#include "kvcached/sanity.hpp"
#include "kvcached/sim_driver.hpp"
#include "sample_geometry.hpp"
#include "simulated_ranks.hpp"
#include "temporary_directory.hpp"

namespace kvcached {
namespace {

using Call = SimDriver::Call;

constexpr std::size_t kGranule = 4096;
constexpr Stream kStream{7};

/// A pager that is turned by hand, on a simulated device. Its extents are a block each; a block is
/// one granule, or half of one.
class ZeroInStepsTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(driver.probe(), Status::ok); }
  void TearDown() override {
    scheduler.reset();
    driver.run_streams();
    pager.reset();
    EXPECT_EQ(driver.snapshot(), SimDriver::Snapshot{}) << "something was not given back";
    EXPECT_EQ(driver.contract_violations(), 0u);
  }

  void start(std::size_t block_bytes = kGranule) {
    block_bytes_ = block_bytes;
    pager = std::make_unique<Pager>(std::make_unique<BorrowedDriver>(driver),
                                    block_major(1, 16, block_bytes, 1), options);
    ASSERT_EQ(pager->start_by_hand(&error), Status::ok) << error;
    ASSERT_EQ(Row::attach(options.path, &scheduler, &error), Status::ok) << error;
  }
  ExtentState ask(std::uint32_t extent, ExtentState state, std::uint64_t fence = 0) {
    scheduler->fence(extent) = fence;
    scheduler->state(extent) = state;
    scheduler->push({extent, 1});
    pager->turn();
    return scheduler->state(extent);
  }
  ExtentState commit(std::uint32_t extent) { return ask(extent, ExtentState::wanted); }
  ExtentState release(std::uint32_t extent, std::uint64_t fence) {
    return ask(extent, ExtentState::releasing, fence);
  }
  ExtentState turn(std::uint32_t extent) {
    pager->turn();
    return scheduler->state(extent);
  }
  Status zero(std::uint64_t step) { return pager->zero(step, kStream, &error); }
  // Launches a step, and lets the device and the scheduler be done with it.
  void finish(std::uint64_t step) {
    pager->launched(step, {step});
    driver.run_streams();
    driver.pass({step});
    scheduler->header().processed_step = step;
  }
  [[nodiscard]] void* at(std::uint32_t extent) {
    return static_cast<char*>(pager->backing().region(0)) + extent * block_bytes_;
  }
  bool is_zero(std::uint32_t extent) { return driver.reads_as_zero(at(extent), block_bytes_); }

  TemporaryDirectory directory;
  SimDriver driver{{.granularity = kGranule}};
  PagerOptions options{.path = directory / "engine.0.row",
                       .engine = "test",
                       .layout = "block",
                       .max_handle_bytes = kGranule,
                       .zero_in_steps = true};
  std::unique_ptr<Pager> pager;
  std::unique_ptr<Row> scheduler;
  std::string error;
  std::size_t block_bytes_ = 0;
};

TEST_F(ZeroInStepsTest, FreshMemoryIsZeroAheadOfTheNextStepAndNobodyWaitsForIt) {
  start();
  const std::uint64_t scrubs = driver.calls(Call::scrub);
  EXPECT_FALSE(pager->zeroes_due()) << "the pinned extent is zero already";
  EXPECT_TRUE(is_zero(0));
  ASSERT_EQ(commit(1), ExtentState::committed);
  EXPECT_FALSE(is_zero(1));
  ASSERT_TRUE(pager->zeroes_due());
  ASSERT_EQ(zero(1), Status::ok);
  EXPECT_FALSE(pager->zeroes_due());
  driver.run_streams();
  EXPECT_TRUE(is_zero(1));
  EXPECT_EQ(driver.calls(Call::scrub), scrubs);
}

TEST_F(ZeroInStepsTest, ExtentsSideBySideAreOneCall) {
  start();
  for (const std::uint32_t extent : {3, 1, 2, 5}) {
    ASSERT_EQ(commit(extent), ExtentState::committed);
  }
  ASSERT_EQ(zero(1), Status::ok);
  EXPECT_EQ(driver.calls(Call::zero_on), 2u);
  driver.run_streams();
  for (const std::uint32_t extent : {1, 2, 3, 5}) EXPECT_TRUE(is_zero(extent)) << extent;
}

TEST_F(ZeroInStepsTest, WhatIsReleasedBeforeAStepIsNotZeroed) {
  start();
  ASSERT_EQ(commit(1), ExtentState::committed);
  ASSERT_EQ(commit(2), ExtentState::committed);
  EXPECT_EQ(release(1, 0), ExtentState::absent);
  ASSERT_EQ(zero(1), Status::ok);
  driver.run_streams();
  EXPECT_TRUE(is_zero(2));
  EXPECT_EQ(release(2, 1), ExtentState::releasing);
  finish(1);
  EXPECT_EQ(turn(2), ExtentState::absent);
  EXPECT_FALSE(pager->zeroes_due());
}

TEST_F(ZeroInStepsTest, MemoryStaysUntilItsZeroingIsOverThoughNoStepUsedIt) {
  start();
  ASSERT_EQ(commit(1), ExtentState::committed);
  ASSERT_EQ(zero(4), Status::ok);
  pager->launched(4, {4});
  scheduler->header().processed_step = 4;
  EXPECT_EQ(release(1, 0), ExtentState::releasing);
  EXPECT_EQ(turn(1), ExtentState::releasing);
  finish(4);
  EXPECT_EQ(turn(1), ExtentState::absent);
}

TEST_F(ZeroInStepsTest, SoDoesWhatAnotherRankRefusedAndItPromisesNothing) {
  start();
  ASSERT_EQ(commit(1), ExtentState::committed);
  ASSERT_EQ(zero(4), Status::ok);
  const std::uint32_t epoch = scheduler->header().capacity_epoch;
  EXPECT_EQ(release(1, kNeverUsable), ExtentState::releasing);
  finish(4);
  EXPECT_EQ(turn(1), ExtentState::absent);
  EXPECT_EQ(scheduler->header().capacity_epoch, epoch);
}

TEST_F(ZeroInStepsTest, AStepThatWasPlannedBeforeTheReleaseAndBeginsAfterItFindsZeroes) {
  start();
  ASSERT_EQ(commit(1), ExtentState::committed);
  ASSERT_EQ(release(1, 1), ExtentState::releasing);
  EXPECT_TRUE(pager->zeroes_due());
  ASSERT_EQ(zero(1), Status::ok);
  driver.run_streams();
  EXPECT_TRUE(is_zero(1));
  finish(1);
  EXPECT_EQ(turn(1), ExtentState::absent);
}

TEST_F(ZeroInStepsTest, WhatALaterStepHasQueuedStaysThoughTheFenceHasPassed) {
  start();
  finish(1);
  ASSERT_EQ(commit(1), ExtentState::committed);
  ASSERT_EQ(zero(2), Status::ok);
  EXPECT_EQ(release(1, 1), ExtentState::releasing);
  finish(2);
  EXPECT_EQ(turn(1), ExtentState::absent);
}

TEST_F(ZeroInStepsTest, ThereIsNoStepZero) {
  start();
  EXPECT_EQ(zero(0), Status::invalid_argument);
}

TEST_F(ZeroInStepsTest, WhatComesAgainIsZeroedAgain) {
  start();
  for (std::uint64_t step = 1; step <= 3; ++step) {
    ASSERT_EQ(commit(1), ExtentState::committed);
    EXPECT_FALSE(is_zero(1));
    ASSERT_EQ(zero(step), Status::ok);
    driver.run_streams();
    ASSERT_TRUE(is_zero(1));
    ASSERT_EQ(driver.touch(at(1), kGranule), Status::ok);
    finish(step);
    ASSERT_EQ(release(1, step), ExtentState::absent);
  }
}

TEST_F(ZeroInStepsTest, OfAGranuleThatANeighbourUsesTheUnitsPartAloneIsZeroed) {
  start(kGranule / 2);
  ASSERT_EQ(commit(2), ExtentState::committed);
  ASSERT_EQ(zero(1), Status::ok);
  driver.run_streams();
  ASSERT_EQ(driver.touch(at(2), block_bytes_), Status::ok);
  ASSERT_EQ(commit(3), ExtentState::committed);
  ASSERT_EQ(driver.touch(at(3), block_bytes_), Status::ok) << "as its last user left it";
  ASSERT_EQ(zero(2), Status::ok);
  driver.run_streams();
  EXPECT_TRUE(is_zero(3));
  EXPECT_FALSE(is_zero(2)) << "somebody's keys and values";
}

TEST_F(ZeroInStepsTest, ARefusalIsSaidAndAllOfItWaitsAsBefore) {
  start();
  ASSERT_EQ(commit(1), ExtentState::committed);
  ASSERT_EQ(commit(3), ExtentState::committed);
  driver.fail_call(Call::zero_on, 2, Status::driver_error);
  EXPECT_EQ(zero(1), Status::driver_error);
  EXPECT_NE(error.find("zero_on"), std::string::npos) << error;
  EXPECT_TRUE(pager->zeroes_due());
  EXPECT_EQ(release(1, 0), ExtentState::releasing) << "part of it may be under way";
  driver.run_streams();
  ASSERT_EQ(zero(1), Status::ok);
  finish(1);
  EXPECT_TRUE(is_zero(3));
  EXPECT_EQ(turn(1), ExtentState::absent);
}

TEST_F(ZeroInStepsTest, ACommitThatFailsHalfWayLeavesNothingToZero) {
  start();
  driver.fail_call(Call::set_access, 1, Status::out_of_memory);
  EXPECT_EQ(commit(1), ExtentState::denied);
  EXPECT_FALSE(pager->zeroes_due());
}

TEST_F(ZeroInStepsTest, TheSanityCheckFillsMemoryItself) {
  options.sanity_check = true;
  start();
  ASSERT_EQ(commit(1), ExtentState::committed);
  EXPECT_FALSE(pager->zeroes_due());
  EXPECT_TRUE(driver.is_all(kSanityFill, at(1), kGranule));
}

TEST(ZeroInStepsWithAPool, EveryBlockIsZeroWhenItsExtentComesAndComesAgain) {
  SimulatedRanks ranks(2, layers_apart(2, 64, kGranule / 2, 2), {.granularity = kGranule},
                       4 * kGranule, true);
  Pool pool(ranks.attach(), {0, 4});
  for (std::uint64_t step = 1; step <= 3; ++step) {
    pool.begin_step(step);
    const auto deadline = Pool::Clock::now() + std::chrono::seconds(10);
    ASSERT_TRUE(pool.ensure(20, deadline));
    std::vector<std::uint32_t> blocks;
    for (int n = 0; n < 20; ++n) blocks.push_back(pool.take());
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      ranks.zero(rank, step);
      ranks.driver(rank).run_streams();
    }
    for (const std::uint32_t block : blocks) {
      // The first two are always there.
      EXPECT_TRUE(block < 2 || ranks.reads_as_zero(block)) << block;
      EXPECT_TRUE(ranks.touch(block)) << block;
      EXPECT_TRUE(pool.give(block));
    }
    ranks.finish(step);
    pool.processed(step);
    while (pool.extents().usable() > 1 && Pool::Clock::now() < deadline) {
      pool.balance(true);
      pool.wait(Pool::Clock::now() + std::chrono::milliseconds(5));
    }
    ASSERT_EQ(pool.extents().usable(), 1u);
  }
}

}  // namespace
}  // namespace kvcached
