#include "kvcached/pager.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "borrowed_driver.hpp"
#include "kvcached/sanity.hpp"
#include "kvcached/sim_driver.hpp"
#include "sample_geometry.hpp"
#include "temporary_directory.hpp"

namespace kvcached {
namespace {

using Call = SimDriver::Call;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::size_t kGranule = 4096;
constexpr std::uint32_t kExtents = 16;

bool eventually(const std::function<bool()>& condition) {
  const auto deadline = Clock::now() + seconds(10);
  while (!condition()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

/// Lets no unmap() pass while the gate is held, and tells how many there were before the last
/// map().
class GatedUnmap final : public BorrowedDriver {
 public:
  GatedUnmap(SimDriver& driver, std::mutex& gate, std::atomic<std::uint64_t>& unmaps)
      : BorrowedDriver(driver), driver_(driver), gate_(gate), unmaps_(unmaps) {}
  [[nodiscard]] Status map(void* address, std::size_t bytes, Handle handle) override {
    unmaps_ = driver_.calls(Call::unmap);
    return BorrowedDriver::map(address, bytes, handle);
  }
  [[nodiscard]] Status unmap(void* address, std::size_t bytes) override {
    const std::lock_guard lock(gate_);
    return BorrowedDriver::unmap(address, bytes);
  }

 private:
  SimDriver& driver_;
  std::mutex& gate_;
  std::atomic<std::uint64_t>& unmaps_;
};

/// A pager on a simulated device, and the scheduler's side of its row.
class PagerTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(driver.probe(), Status::ok); }
  void TearDown() override {
    scheduler.reset();
    pager.reset();
    EXPECT_EQ(driver.snapshot(), SimDriver::Snapshot{}) << "something was not given back";
    EXPECT_EQ(driver.contract_violations(), 0u);
    EXPECT_FALSE(std::filesystem::exists(options.path));
  }

  void make() {
    pager = std::make_unique<Pager>(std::make_unique<BorrowedDriver>(driver),
                                    layers_apart(2, kExtents, kGranule, 1), options);
  }
  void start() {
    make();
    ASSERT_EQ(pager->start(&error), Status::ok) << error;
    ASSERT_EQ(Row::attach(options.path, &scheduler, &error), Status::ok) << error;
  }

  void tell(Row::Request unit, ExtentState state, std::uint64_t fence = 0) {
    for (std::uint32_t extent = unit.first; extent < unit.first + unit.count; ++extent) {
      scheduler->fence(extent) = fence;
      scheduler->state(extent) = state;
    }
    scheduler->push(unit);
  }
  bool becomes(Row::Request unit, ExtentState state) {
    return eventually([&] { return is(unit, state); });
  }
  bool is(Row::Request unit, ExtentState state) const {
    for (std::uint32_t extent = unit.first; extent < unit.first + unit.count; ++extent) {
      if (scheduler->state(extent) != state) return false;
    }
    return true;
  }
  bool stays(Row::Request unit, ExtentState state, milliseconds time = milliseconds(20)) {
    std::this_thread::sleep_for(time);
    return is(unit, state);
  }
  bool commit(Row::Request unit) {
    tell(unit, ExtentState::wanted);
    return becomes(unit, ExtentState::committed);
  }
  RowHeader& header() { return scheduler->header(); }

  // Keeps its clock at zero: an event passes when the test says so.
  static Event event(std::uint64_t number) { return {number}; }

  TemporaryDirectory directory;
  SimDriver driver{{.granularity = kGranule}};
  PagerOptions options{.path = directory / "engine.0.row", .engine = "test", .layout = "layer"};
  std::unique_ptr<Pager> pager;
  std::unique_ptr<Row> scheduler;
  std::string error;
};

TEST_F(PagerTest, TheRowTellsWhatThePagerBacks) {
  options.rank = 2;
  options.pinned_extents = 3;
  options.max_handle_bytes = 8 * kGranule;
  start();
  const RowFacts& facts = scheduler->facts();
  EXPECT_EQ(facts.rank, 2u);
  EXPECT_EQ(facts.num_blocks, kExtents);
  EXPECT_EQ(facts.num_extents, kExtents);
  EXPECT_EQ(facts.pinned_extents, 3u);
  EXPECT_EQ(facts.max_unit_extents, 8u);
  EXPECT_EQ(facts.granule_bytes, kGranule);
  EXPECT_EQ(facts.extent_bytes, 2 * kGranule);
  EXPECT_EQ(facts.block_bytes, 2 * kGranule);
  EXPECT_EQ(facts.virtual_bytes, 2 * kExtents * kGranule);
  EXPECT_STREQ(facts.driver, "sim");
  EXPECT_STREQ(facts.engine, "test");
  EXPECT_STREQ(facts.layout, "layer");
}

TEST_F(PagerTest, PinnedExtentsAreCommittedAtTheStart) {
  options.pinned_extents = 2;
  start();
  EXPECT_TRUE(is({0, 2}, ExtentState::committed));
  EXPECT_TRUE(is({2, kExtents - 2}, ExtentState::absent));
  EXPECT_EQ(driver.mapped_bytes(), 4 * kGranule);
  EXPECT_EQ(header().mapped_bytes, 4 * kGranule);
}

TEST_F(PagerTest, UnderTheSanityCheckMemoryHoldsThePatternFromTheStartOn) {
  options.sanity_check = true;
  start();
  ASSERT_TRUE(commit({3, 1}));
  const char* const region = static_cast<const char*>(pager->backing().region(0));
  EXPECT_TRUE(driver.is_all(kSanityFill, region, kGranule)) << "the pinned extent";
  EXPECT_TRUE(driver.is_all(kSanityFill, region + 3 * kGranule, kGranule));
  EXPECT_EQ(pager->violation(), "");
}

TEST_F(PagerTest, AWriteToReleasedMemoryIsKnownBeforeItsExtentIsCommittedAgain) {
  options.sanity_check = true;
  pager = std::make_unique<Pager>(std::make_unique<BorrowedDriver>(driver),
                                  block_major(1, kExtents, kGranule * 3 / 2, 1), options);
  ASSERT_EQ(pager->start(&error), Status::ok) << error;
  ASSERT_EQ(Row::attach(options.path, &scheduler, &error), Status::ok) << error;
  ASSERT_TRUE(commit({1, 1}));
  tell({1, 1}, ExtentState::releasing);
  ASSERT_TRUE(becomes({1, 1}, ExtentState::absent));
  char* const region = static_cast<char*>(pager->backing().region(0));
  ASSERT_EQ(driver.touch(region + 2 * kGranule - 1, 1), Status::ok) << "shared with extent 0";
  ASSERT_TRUE(commit({1, 1}));
  EXPECT_NE(pager->violation(), "");
}

TEST_F(PagerTest, MorePinnedExtentsThanThereAreAreAllOfThem) {
  options.pinned_extents = 1000;
  start();
  EXPECT_EQ(scheduler->facts().pinned_extents, kExtents);
  EXPECT_TRUE(is({0, kExtents}, ExtentState::committed));
}

TEST_F(PagerTest, WhicheverCallFailsAtTheStartNothingIsLeftBehind) {
  options.pinned_extents = 3;
  make();
  const std::uint64_t before = driver.calls();
  ASSERT_EQ(pager->start(&error), Status::ok) << error;
  pager->stop();
  const std::uint64_t calls = driver.calls() - before;
  pager.reset();
  ASSERT_GT(calls, 10u);
  for (std::uint64_t n = 1; n <= calls; ++n) {
    SCOPED_TRACE(n);
    make();
    driver.fail_call(n, Status::out_of_memory);
    error.clear();
    EXPECT_NE(pager->start(&error), Status::ok);
    driver.clear_failures();
    EXPECT_NE(error, "");
    EXPECT_EQ(driver.snapshot(), SimDriver::Snapshot{});
    EXPECT_FALSE(std::filesystem::exists(options.path));
    EXPECT_EQ(pager->start(&error), Status::ok) << "it may be tried again: " << error;
    EXPECT_EQ(driver.mapped_bytes(), 6 * kGranule);
    pager.reset();
  }
}

TEST_F(PagerTest, ALimitBelowThePinnedExtentsRefusesToStart) {
  options.pinned_extents = 3;
  options.limit_bytes = 5 * kGranule;
  make();
  EXPECT_EQ(pager->start(&error), Status::out_of_memory);
  EXPECT_NE(error.find("always committed"), std::string::npos);
  EXPECT_EQ(driver.snapshot(), SimDriver::Snapshot{});
}

TEST_F(PagerTest, ARowThatAnotherHoldsRefusesToStartAndLeavesNothing) {
  start();
  SimDriver second({.granularity = kGranule});
  ASSERT_EQ(second.probe(), Status::ok);
  Pager late(std::make_unique<BorrowedDriver>(second), layers_apart(2, kExtents, kGranule, 1),
             options);
  EXPECT_EQ(late.start(&error), Status::busy);
  EXPECT_EQ(second.snapshot(), SimDriver::Snapshot{});
  EXPECT_TRUE(commit({4, 1})) << "the first one goes on";
}

TEST_F(PagerTest, ARequestIsAnsweredAndCounted) {
  start();
  const std::uint32_t answers = header().answers;
  ASSERT_TRUE(commit({4, 4}));
  EXPECT_TRUE(eventually([&] { return header().answers != answers; }));
  EXPECT_EQ(header().commits, 4u);
  EXPECT_EQ(header().mapped_bytes, 10 * kGranule);
  EXPECT_EQ(driver.mapped_bytes(), 10 * kGranule);
  EXPECT_EQ(pager->last_error(), "");
}

TEST_F(PagerTest, OneThatIsTurnedByHandDoesNothingInBetween) {
  make();
  ASSERT_EQ(pager->start_by_hand(&error), Status::ok) << error;
  ASSERT_EQ(Row::attach(options.path, &scheduler, &error), Status::ok) << error;
  tell({4, 1}, ExtentState::wanted);
  EXPECT_TRUE(stays({4, 1}, ExtentState::wanted));
  pager->turn();
  EXPECT_TRUE(is({4, 1}, ExtentState::committed));
  tell({4, 1}, ExtentState::releasing);
  pager->turn();
  EXPECT_TRUE(is({4, 1}, ExtentState::absent));
}

TEST_F(PagerTest, TheFirstExtentOfAUnitChangesAfterAllOthers) {
  // The pool looks at the first one alone, and may have written the others again by then.
  constexpr std::uint32_t kMany = 20'000;
  pager = std::make_unique<Pager>(std::make_unique<BorrowedDriver>(driver),
                                  block_major(1, kMany, kGranule, 1), options);
  ASSERT_EQ(pager->start(&error), Status::ok) << error;
  ASSERT_EQ(Row::attach(options.path, &scheduler, &error), Status::ok) << error;
  const Row::Request unit{1, kMany - 1};
  for (int round = 0; round < 30; ++round) {
    for (const auto& [asked, answer] : {std::pair{ExtentState::wanted, ExtentState::committed},
                                        std::pair{ExtentState::releasing, ExtentState::absent}}) {
      tell(unit, asked);
      const auto deadline = Clock::now() + seconds(10);
      while (scheduler->state(unit.first) == asked && Clock::now() < deadline) {
      }
      ASSERT_EQ(scheduler->state(kMany - 1), answer);
      ASSERT_TRUE(is(unit, answer));
    }
  }
}

TEST_F(PagerTest, ManyRequestsAtOnceAreAllAnswered) {
  start();
  for (std::uint32_t round = 0; round < 20; ++round) {
    for (std::uint32_t extent = 1; extent < kExtents; ++extent) {
      tell({extent, 1}, ExtentState::wanted);
    }
    ASSERT_TRUE(becomes({1, kExtents - 1}, ExtentState::committed));
    for (std::uint32_t extent = 1; extent < kExtents; ++extent) {
      tell({extent, 1}, ExtentState::releasing);
    }
    ASSERT_TRUE(becomes({1, kExtents - 1}, ExtentState::absent));
  }
}

TEST_F(PagerTest, ARequestTheDeviceCannotServeIsDeniedAndServedAfterARelease) {
  driver.set_capacity(6 * kGranule);
  start();
  ASSERT_TRUE(commit({1, 2}));
  tell({3, 1}, ExtentState::wanted);
  ASSERT_TRUE(becomes({3, 1}, ExtentState::denied));
  EXPECT_EQ(header().denials, 1u);
  EXPECT_NE(pager->last_error().find("create"), std::string::npos);
  EXPECT_EQ(driver.mapped_bytes(), 6 * kGranule) << "a denied request leaves nothing behind";
  const std::uint32_t epoch = header().capacity_epoch;
  tell({1, 2}, ExtentState::releasing);
  ASSERT_TRUE(becomes({1, 2}, ExtentState::absent));
  EXPECT_TRUE(eventually([&] { return header().capacity_epoch != epoch; }));
  EXPECT_TRUE(commit({3, 1}));
}

TEST_F(PagerTest, ARequestAboveTheLimitIsDeniedUntilTheLimitIsRaised) {
  options.limit_bytes = 4 * kGranule;
  start();
  ASSERT_TRUE(commit({1, 1}));
  tell({2, 1}, ExtentState::wanted);
  ASSERT_TRUE(becomes({2, 1}, ExtentState::denied));
  EXPECT_NE(pager->last_error().find("limit"), std::string::npos);
  header().limit_bytes = 6 * kGranule;
  EXPECT_TRUE(commit({2, 1}));
  EXPECT_LE(header().held_bytes, 6 * kGranule);
}

/// Holds the pager up in a create(), or in its wait for scrubs, for as long as the test wants.
class GatedDriver final : public BorrowedDriver {
 public:
  GatedDriver(Driver& driver, std::mutex& gate, Call gated = Call::create)
      : BorrowedDriver(driver), gate_(gate), gated_(gated) {}
  [[nodiscard]] Status create(std::size_t bytes, Handle* handle) override {
    pass(Call::create);
    return BorrowedDriver::create(bytes, handle);
  }
  [[nodiscard]] Status wait_for_scrubs() override {
    pass(Call::wait_for_scrubs);
    return BorrowedDriver::wait_for_scrubs();
  }

 private:
  void pass(Call call) {
    if (call == gated_) const std::lock_guard lock(gate_);
  }

  std::mutex& gate_;
  const Call gated_;
};

TEST_F(PagerTest, NothingIsCommittedBeforeItsMemoryIsZero) {
  std::mutex gate;
  std::unique_lock closed(gate, std::defer_lock);
  pager =
      std::make_unique<Pager>(std::make_unique<GatedDriver>(driver, gate, Call::wait_for_scrubs),
                              layers_apart(2, kExtents, kGranule, 1), options);
  ASSERT_EQ(pager->start(&error), Status::ok) << error;
  ASSERT_EQ(Row::attach(options.path, &scheduler, &error), Status::ok) << error;
  closed.lock();
  for (const std::uint32_t first : {1u, 3u, 5u}) tell({first, 1}, ExtentState::wanted);
  EXPECT_TRUE(eventually([&] { return driver.mapped_bytes() == 4 * kGranule; }));
  EXPECT_TRUE(stays({1, 1}, ExtentState::wanted));
  EXPECT_EQ(driver.mapped_bytes(), 4 * kGranule);
  closed.unlock();
  for (const std::uint32_t first : {1u, 3u, 5u}) {
    ASSERT_TRUE(becomes({first, 1}, ExtentState::committed));
  }
  EXPECT_EQ(header().commits, 3u);
  scheduler.reset();
  pager.reset();
}

TEST_F(PagerTest, ManyUnitsAreWaitedForAFewTimes) {
  constexpr std::uint32_t kMany = 2000;
  std::mutex gate;
  pager = std::make_unique<Pager>(std::make_unique<GatedDriver>(driver, gate),
                                  block_major(1, kMany, kGranule, 1), options);
  ASSERT_EQ(pager->start(&error), Status::ok) << error;
  ASSERT_EQ(Row::attach(options.path, &scheduler, &error), Status::ok) << error;
  {
    const std::lock_guard lock(gate);
    for (std::uint32_t extent = 1; extent < kMany; ++extent) {
      tell({extent, 1}, ExtentState::wanted);
    }
  }
  ASSERT_TRUE(becomes({1, kMany - 1}, ExtentState::committed));
  EXPECT_LT(driver.calls(Call::wait_for_scrubs), kMany / 4);
  EXPECT_TRUE(driver.reads_as_zero(pager->backing().region(0), kMany * kGranule));
  scheduler.reset();
  pager.reset();
}

TEST_F(PagerTest, WhereZeroingFailsTheWholeRunIsDeniedAndMayBeAskedForAgain) {
  std::mutex gate;
  pager = std::make_unique<Pager>(std::make_unique<GatedDriver>(driver, gate),
                                  layers_apart(2, kExtents, kGranule, 1), options);
  ASSERT_EQ(pager->start(&error), Status::ok) << error;
  ASSERT_EQ(Row::attach(options.path, &scheduler, &error), Status::ok) << error;
  {
    const std::lock_guard lock(gate);
    for (const std::uint32_t first : {1u, 3u, 5u}) tell({first, 1}, ExtentState::wanted);
    // The first unit is answered for by itself, the others together, or apart on a slow machine.
    driver.fail_call(Call::wait_for_scrubs, 2, Status::driver_error);
    driver.fail_call(Call::wait_for_scrubs, 3, Status::driver_error);
  }
  EXPECT_TRUE(becomes({1, 1}, ExtentState::committed));
  EXPECT_TRUE(becomes({3, 1}, ExtentState::denied));
  EXPECT_TRUE(becomes({5, 1}, ExtentState::denied));
  EXPECT_EQ(header().commits, 1u);
  EXPECT_EQ(header().denials, 2u);
  EXPECT_NE(pager->last_error().find("wait_for_scrubs"), std::string::npos);
  EXPECT_EQ(driver.mapped_bytes(), 4 * kGranule);
  driver.clear_failures();
  EXPECT_TRUE(commit({3, 1}));
  EXPECT_TRUE(commit({5, 1}));
  scheduler.reset();
  pager.reset();
}

TEST_F(PagerTest, ARequestIsServedWhileThousandsOfReleasesAreUnderWay) {
  constexpr std::uint32_t kMany = 4000;
  std::mutex gate;
  std::atomic<std::uint64_t> unmaps{0};
  pager = std::make_unique<Pager>(std::make_unique<GatedUnmap>(driver, gate, unmaps),
                                  block_major(1, kMany + 1, kGranule, 1), options);
  ASSERT_EQ(pager->start(&error), Status::ok) << error;
  ASSERT_EQ(Row::attach(options.path, &scheduler, &error), Status::ok) << error;
  for (std::uint32_t extent = 1; extent < kMany; ++extent) {
    tell({extent, 1}, ExtentState::wanted);
  }
  ASSERT_TRUE(becomes({1, kMany - 1}, ExtentState::committed));
  for (std::uint32_t extent = 1; extent < kMany; ++extent) {
    tell({extent, 1}, ExtentState::releasing, 5);
  }
  // The pager knows of all of them when the ring is empty.
  ASSERT_TRUE(eventually([&] { return header().ring_head == header().ring_tail; }));
  {
    const std::lock_guard lock(gate);
    header().processed_step = 5;
    pager->launched(5, {});
    std::this_thread::sleep_for(milliseconds(5));
    tell({kMany, 1}, ExtentState::wanted);
  }
  ASSERT_TRUE(becomes({kMany, 1}, ExtentState::committed));
  EXPECT_LT(unmaps, kMany / 2);
  EXPECT_TRUE(becomes({1, kMany - 1}, ExtentState::absent));
  EXPECT_EQ(header().releases, kMany - 1);
  scheduler.reset();
  pager.reset();
}

TEST_F(PagerTest, WhatIsOnItsWayOutMakesRoomForWhatIsWanted) {
  std::mutex gate;
  pager = std::make_unique<Pager>(std::make_unique<GatedDriver>(driver, gate),
                                  layers_apart(2, kExtents, kGranule, 1), options);
  ASSERT_EQ(pager->start(&error), Status::ok) << error;
  ASSERT_EQ(Row::attach(options.path, &scheduler, &error), Status::ok) << error;
  ASSERT_TRUE(commit({1, 2}));
  driver.set_capacity(8 * kGranule);
  {
    const std::lock_guard lock(gate);
    tell({9, 1}, ExtentState::wanted);
    // Both are in the ring before the pager comes to look.
    tell({1, 2}, ExtentState::releasing);
    tell({3, 1}, ExtentState::wanted);
  }
  EXPECT_TRUE(becomes({3, 1}, ExtentState::committed));
  EXPECT_EQ(header().denials, 0u);
  scheduler.reset();
  pager.reset();
}

TEST_F(PagerTest, AReleaseWaitsUntilItsStepIsProcessedLaunchedAndOverOnTheDevice) {
  start();
  ASSERT_TRUE(commit({1, 1}));
  header().processed_step = 4;
  pager->launched(4, event(4));
  driver.pass(event(4));
  tell({1, 1}, ExtentState::releasing, 5);
  EXPECT_TRUE(stays({1, 1}, ExtentState::releasing)) << "step 5 is not even launched";
  pager->launched(5, event(5));
  EXPECT_TRUE(stays({1, 1}, ExtentState::releasing)) << "the device works on step 5";
  driver.pass(event(5));
  EXPECT_TRUE(stays({1, 1}, ExtentState::releasing)) << "the output of step 5 is not back";
  EXPECT_TRUE(eventually([&] { return pager->passed_step() == 5; }));
  header().processed_step = 5;
  EXPECT_TRUE(becomes({1, 1}, ExtentState::absent));
  EXPECT_EQ(header().releases, 1u);
}

TEST_F(PagerTest, AReleaseWaitsForTheDeviceThoughTheOutputIsBack) {
  start();
  ASSERT_TRUE(commit({1, 1}));
  pager->launched(5, event(5));
  header().processed_step = 9;
  tell({1, 1}, ExtentState::releasing, 5);
  EXPECT_TRUE(stays({1, 1}, ExtentState::releasing));
  EXPECT_EQ(driver.mapped_bytes(), 4 * kGranule);
  driver.pass(event(5));
  EXPECT_TRUE(becomes({1, 1}, ExtentState::absent));
}

TEST_F(PagerTest, AReleaseThatWaitsDoesNotHoldUpOthers) {
  start();
  ASSERT_TRUE(commit({1, 1}));
  ASSERT_TRUE(commit({2, 1}));
  header().processed_step = 9;
  pager->launched(3, event(3));
  driver.pass(event(3));
  tell({1, 1}, ExtentState::releasing, 9);
  tell({2, 1}, ExtentState::releasing, 3);
  EXPECT_TRUE(becomes({2, 1}, ExtentState::absent));
  EXPECT_TRUE(commit({3, 1}));
  EXPECT_TRUE(is({1, 1}, ExtentState::releasing));
}

TEST_F(PagerTest, AnEventThatTheDriverCannotTellIsAskedForAgain) {
  start();
  ASSERT_TRUE(commit({1, 1}));
  pager->launched(1, event(1));
  driver.pass(event(1));
  header().processed_step = 1;
  driver.fail_call(Call::event_passed, 1, Status::driver_error);
  tell({1, 1}, ExtentState::releasing, 1);
  EXPECT_TRUE(becomes({1, 1}, ExtentState::absent));
}

TEST_F(PagerTest, WithoutAnEventAStepIsOverWhenItIsLaunched) {
  start();
  pager->launched(7, {});
  EXPECT_EQ(pager->passed_step(), 7u);
}

TEST_F(PagerTest, AnEventlessStepBehindAnUnfinishedOneWaitsForIt) {
  start();
  ASSERT_TRUE(commit({1, 1}));
  header().processed_step = 9;
  pager->launched(1, event(1));
  pager->launched(2, {});
  tell({1, 1}, ExtentState::releasing, 2);
  EXPECT_TRUE(stays({1, 1}, ExtentState::releasing));
  driver.pass(event(1));
  EXPECT_TRUE(becomes({1, 1}, ExtentState::absent));
}

TEST_F(PagerTest, OfManyLaunchesTheLastSixtyFourAreRemembered) {
  start();
  ASSERT_TRUE(commit({1, 1}));
  ASSERT_TRUE(commit({2, 1}));
  const std::uint64_t last = 3 * Pager::kMaxLaunches;
  for (std::uint64_t step = 1; step <= last; ++step) pager->launched(step, event(step));
  header().processed_step = last;
  // Its own event is forgotten; the oldest that is known stands for it.
  tell({1, 1}, ExtentState::releasing, 1);
  tell({2, 1}, ExtentState::releasing, last);
  for (std::uint64_t step = 1; step <= last - Pager::kMaxLaunches; ++step) {
    driver.pass(event(step));
  }
  EXPECT_TRUE(stays({1, 1}, ExtentState::releasing));
  driver.pass(event(last - Pager::kMaxLaunches + 1));
  EXPECT_TRUE(becomes({1, 1}, ExtentState::absent));
  EXPECT_TRUE(stays({2, 1}, ExtentState::releasing));
  for (std::uint64_t step = last - Pager::kMaxLaunches; step <= last; ++step) {
    driver.pass(event(step));
  }
  EXPECT_TRUE(becomes({2, 1}, ExtentState::absent));
  EXPECT_EQ(pager->passed_step(), last);
}

TEST_F(PagerTest, AnExtentThatAnotherRankRefusedGoesAtOnceAndPromisesNothing) {
  start();
  ASSERT_TRUE(commit({1, 1}));
  const std::uint32_t epoch = header().capacity_epoch;
  tell({1, 1}, ExtentState::releasing, kNeverUsable);
  ASSERT_TRUE(becomes({1, 1}, ExtentState::absent));
  EXPECT_TRUE(eventually([&] { return header().mapped_bytes == 2 * kGranule; }));
  EXPECT_EQ(header().capacity_epoch, epoch);
}

TEST_F(PagerTest, KeptHandlesAreGivenBackSoon) {
  start();
  ASSERT_TRUE(commit({1, 8}));
  tell({1, 8}, ExtentState::releasing);
  ASSERT_TRUE(becomes({1, 8}, ExtentState::absent));
  EXPECT_TRUE(eventually([&] { return driver.created_bytes() == 2 * kGranule; }));
  EXPECT_TRUE(eventually([&] { return header().held_bytes == 2 * kGranule; }));
}

TEST_F(PagerTest, AStoppedPagerKeepsItsMemoryAndRemovesItsRow) {
  start();
  ASSERT_TRUE(commit({1, 1}));
  pager->stop();
  EXPECT_FALSE(std::filesystem::exists(options.path));
  EXPECT_FALSE(scheduler->owner_alive());
  EXPECT_EQ(driver.mapped_bytes(), 4 * kGranule);
  EXPECT_EQ(pager->row(), nullptr);
  EXPECT_EQ(pager->passed_step(), 0u);
  pager->launched(3, {});
  pager->launched(4, event(4));
  pager->stop();
}

TEST_F(PagerTest, StoppingWhatNeverStartedDoesNothing) {
  make();
  pager->stop();
  pager->stop();
}

TEST_F(PagerTest, StoppingNeverWaitsForTheIdlePause) {
  for (int round = 0; round < 200; ++round) {
    make();
    ASSERT_EQ(pager->start(&error), Status::ok) << error;
    // Sometimes before the thread runs, sometimes on its way to sleep.
    if (round % 2 == 0) std::this_thread::sleep_for(std::chrono::microseconds(round));
    const auto begin = Clock::now();
    pager->stop();
    EXPECT_LT(Clock::now() - begin, milliseconds(900));
    pager.reset();
  }
}

TEST_F(PagerTest, LaunchesAndRequestsMayComeFromTwoThreads) {
  start();
  std::atomic<bool> done{false};
  std::atomic<std::uint64_t> step{0};
  std::thread worker([&] {
    while (!done) {
      const std::uint64_t next = ++step;
      pager->launched(next, event(next));
      driver.pass(event(next));
      std::this_thread::yield();
    }
  });
  for (int round = 0; round < 100; ++round) {
    ASSERT_TRUE(commit({1, 2}));
    const std::uint64_t fence = step;
    header().processed_step = fence;
    tell({1, 2}, ExtentState::releasing, fence);
    ASSERT_TRUE(becomes({1, 2}, ExtentState::absent));
  }
  done = true;
  worker.join();
}

}  // namespace
}  // namespace kvcached
