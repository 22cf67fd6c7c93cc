// What is special to the simulated driver; what every driver must do is in
// driver_conformance_test.cpp.

#include "kvcached/sim_driver.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <thread>
#include <vector>

namespace kvcached {
namespace {

using Call = SimDriver::Call;

constexpr std::size_t kUnit = std::size_t{2} << 20;

class SimDriverTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(driver.probe(), Status::ok);
    ASSERT_EQ(driver.reserve(16 * kUnit, &base), Status::ok);
  }

  void* at(std::size_t n) const { return static_cast<char*>(base) + n * kUnit; }

  Handle commit(std::size_t n) {
    Handle handle;
    EXPECT_EQ(driver.create(kUnit, &handle), Status::ok);
    EXPECT_EQ(driver.map(at(n), kUnit, handle), Status::ok);
    EXPECT_EQ(driver.set_access(at(n), kUnit), Status::ok);
    return handle;
  }

  SimDriver driver;
  Handle handles[2];
  void* base = nullptr;
};

TEST_F(SimDriverTest, CountsCallsBytesAndMappings) {
  const Handle handle = commit(0);
  commit(1);
  EXPECT_EQ(driver.calls(), 8u);
  EXPECT_EQ(driver.calls(Call::create), 2u);
  EXPECT_EQ(driver.calls(Call::unmap), 0u);
  EXPECT_EQ(driver.created_bytes(), 2 * kUnit);
  EXPECT_EQ(driver.mapped_bytes(), 2 * kUnit);
  ASSERT_EQ(driver.unmap(at(0), kUnit), Status::ok);
  ASSERT_EQ(driver.destroy(handle, kUnit), Status::ok);
  EXPECT_EQ(driver.created_bytes(), kUnit);
  EXPECT_EQ(driver.mapped_bytes(), kUnit);
  EXPECT_EQ(driver.peak_created_bytes(), 2 * kUnit);
  EXPECT_EQ(driver.contract_violations(), 0u);
}

TEST_F(SimDriverTest, TakesTheTimeItIsToldTo) {
  driver.set_latency(Call::create, {.base_ns = 10'000, .per_mib_ns = 100});
  driver.set_latency(Call::map, {.base_ns = 800});
  const std::uint64_t start = driver.now();
  commit(0);
  EXPECT_EQ(driver.now() - start, 10'000u + 2 * 100u + 800u);
  driver.advance(5);
  EXPECT_EQ(driver.now() - start, 11'005u);
}

TEST_F(SimDriverTest, TakesTimeForAFailedCallToo) {
  driver.set_latency(Call::create, {.base_ns = 10'000});
  driver.fail_call(Call::create, 1, Status::out_of_memory);
  Handle handle;
  EXPECT_EQ(driver.create(kUnit, &handle), Status::out_of_memory);
  EXPECT_EQ(driver.now(), 10'000u);
}

TEST_F(SimDriverTest, ObeysACapacityThatChanges) {
  const Handle first = commit(0);
  driver.set_capacity(kUnit);
  Handle handle;
  EXPECT_EQ(driver.create(kUnit, &handle), Status::out_of_memory);
  driver.set_capacity(2 * kUnit);
  EXPECT_EQ(driver.create(kUnit, &handle), Status::ok);
  driver.set_capacity(0);
  MemoryInfo info{1, 1};
  ASSERT_EQ(driver.memory_info(&info), Status::ok);
  EXPECT_EQ(info.free, 0u);
  EXPECT_EQ(info.total, 0u);
  EXPECT_EQ(driver.unmap(at(0), kUnit), Status::ok);
  EXPECT_EQ(driver.destroy(first, kUnit), Status::ok);
  EXPECT_EQ(driver.create(kUnit, &handle), Status::out_of_memory);
}

TEST_F(SimDriverTest, FailsTheNthCallOfAKindOnce) {
  Handle handle;
  driver.fail_call(Call::create, 2, Status::driver_error);
  EXPECT_EQ(driver.create(kUnit, &handle), Status::ok);
  MemoryInfo info;
  EXPECT_EQ(driver.memory_info(&info), Status::ok);
  EXPECT_EQ(driver.create(kUnit, &handle), Status::driver_error);
  EXPECT_NE(driver.last_error().find("scripted"), std::string::npos);
  EXPECT_EQ(driver.create(kUnit, &handle), Status::ok);
}

TEST_F(SimDriverTest, FailsTheNthCallOfAnyKind) {
  Handle handle;
  MemoryInfo info;
  driver.fail_call(3, Status::out_of_memory);
  EXPECT_EQ(driver.create(kUnit, &handle), Status::ok);
  EXPECT_EQ(driver.memory_info(&info), Status::ok);
  EXPECT_EQ(driver.map(base, kUnit, handle), Status::out_of_memory);
  EXPECT_EQ(driver.map(base, kUnit, handle), Status::ok);
}

TEST_F(SimDriverTest, ForgetsFailuresThatAreCleared) {
  Handle handle;
  driver.fail_call(1, Status::driver_error);
  driver.clear_failures();
  EXPECT_EQ(driver.create(kUnit, &handle), Status::ok);
}

TEST_F(SimDriverTest, LeavesEverythingAsItWasWhicheverCallFails) {
  const std::vector<std::function<Status(SimDriver&)>> life = {
      [&](SimDriver& d) { return d.create(kUnit, &handles[1]); },
      [&](SimDriver& d) { return d.map(at(1), kUnit, handles[1]); },
      [&](SimDriver& d) { return d.set_access(at(1), kUnit); },
      [&](SimDriver& d) { return d.scrub(at(1), kUnit, 0x3f); },
      [&](SimDriver& d) { return d.scrub(at(1), kUnit); },
      [&](SimDriver& d) { return d.unmap(at(1), kUnit); },
      [&](SimDriver& d) { return d.destroy(handles[1], kUnit); },
  };
  handles[0] = commit(0);
  for (const auto& call : life) {
    const SimDriver::Snapshot before = driver.snapshot();
    driver.fail_call(1, Status::driver_error);
    EXPECT_EQ(call(driver), Status::driver_error);
    EXPECT_EQ(driver.snapshot(), before);
    EXPECT_EQ(call(driver), Status::ok) << driver.last_error();
    EXPECT_NE(driver.snapshot(), before);
  }
  EXPECT_EQ(driver.contract_violations(), 0u);
}

TEST_F(SimDriverTest, CountsEveryBreachOfTheContractAndChangesNothing) {
  const Handle handle = commit(0);
  Handle loose;
  ASSERT_EQ(driver.create(kUnit, &loose), Status::ok);
  const SimDriver::Snapshot before = driver.snapshot();
  EXPECT_EQ(driver.touch(base, 0), Status::invalid_argument);
  EXPECT_EQ(driver.map(base, kUnit, loose), Status::invalid_argument);
  EXPECT_EQ(driver.set_access(at(1), kUnit), Status::invalid_argument);
  EXPECT_EQ(driver.destroy(handle, kUnit), Status::invalid_argument);
  EXPECT_EQ(driver.unmap(base, kUnit / 2), Status::invalid_argument);
  EXPECT_EQ(driver.unreserve(base, 16 * kUnit), Status::invalid_argument);
  EXPECT_EQ(driver.scrub(at(1), kUnit), Status::invalid_argument);
  EXPECT_EQ(driver.touch(at(1), 1), Status::invalid_argument);
  EXPECT_EQ(driver.contract_violations(), 8u);
  EXPECT_EQ(driver.snapshot(), before);
}

TEST_F(SimDriverTest, CountsNoScriptedFailureAsABreach) {
  Handle handle;
  driver.fail_call(1, Status::invalid_argument);
  EXPECT_EQ(driver.create(kUnit, &handle), Status::invalid_argument);
  EXPECT_EQ(driver.contract_violations(), 0u);
}

TEST_F(SimDriverTest, PassesAnEventWhenItsTimeHasCome) {
  bool passed = true;
  ASSERT_EQ(driver.event_passed(Event{1'000}, &passed), Status::ok);
  EXPECT_FALSE(passed);
  driver.advance(1'000);
  ASSERT_EQ(driver.event_passed(Event{1'000}, &passed), Status::ok);
  EXPECT_TRUE(passed);
}

TEST_F(SimDriverTest, PassesAnEventWhenATestSaysSo) {
  bool passed = true;
  driver.pass(Event{7'000'000});
  ASSERT_EQ(driver.event_passed(Event{7'000'000}, &passed), Status::ok);
  EXPECT_TRUE(passed);
  ASSERT_EQ(driver.event_passed(Event{7'000'001}, &passed), Status::ok);
  EXPECT_FALSE(passed);
}

TEST_F(SimDriverTest, KnowsWhichBytesAreZero) {
  commit(0);
  commit(1);
  const auto byte = [&](std::size_t n) { return static_cast<char*>(base) + n; };
  EXPECT_FALSE(driver.reads_as_zero(base, 1));
  ASSERT_EQ(driver.scrub(base, 2 * kUnit), Status::ok);
  ASSERT_EQ(driver.wait_for_scrubs(), Status::ok);
  EXPECT_TRUE(driver.reads_as_zero(base, 2 * kUnit));
  ASSERT_EQ(driver.touch(byte(kUnit - 1), 2), Status::ok);
  EXPECT_TRUE(driver.reads_as_zero(base, kUnit - 1));
  EXPECT_FALSE(driver.reads_as_zero(byte(kUnit - 1), 1));
  EXPECT_FALSE(driver.reads_as_zero(byte(kUnit), 1));
  EXPECT_TRUE(driver.reads_as_zero(byte(kUnit + 1), kUnit - 1));
  ASSERT_EQ(driver.scrub(byte(kUnit - 1), 1), Status::ok);
  ASSERT_EQ(driver.wait_for_scrubs(), Status::ok);
  EXPECT_TRUE(driver.reads_as_zero(base, kUnit));
  EXPECT_EQ(driver.contract_violations(), 0u);
  EXPECT_FALSE(driver.reads_as_zero(at(2), 1));
  EXPECT_EQ(driver.contract_violations(), 1u);
}

TEST_F(SimDriverTest, ZeroesNothingBeforeItIsWaitedFor) {
  commit(0);
  commit(1);
  ASSERT_EQ(driver.scrub(base, kUnit), Status::ok);
  EXPECT_FALSE(driver.reads_as_zero(base, 1));
  EXPECT_EQ(driver.touch(at(1), kUnit), Status::ok) << "its neighbour is not concerned";
  EXPECT_EQ(driver.contract_violations(), 0u);
  EXPECT_EQ(driver.touch(base, 1), Status::invalid_argument);
  EXPECT_EQ(driver.contract_violations(), 1u);
  ASSERT_EQ(driver.wait_for_scrubs(), Status::ok);
  EXPECT_TRUE(driver.reads_as_zero(base, kUnit));
  EXPECT_EQ(driver.touch(base, 1), Status::ok);
}

TEST_F(SimDriverTest, CountsAReadOfWhatIsBeingScrubbedAsABreach) {
  commit(0);
  commit(1);
  ASSERT_EQ(driver.scrub(at(1), kUnit, 0x3f), Status::ok);
  ASSERT_EQ(driver.wait_for_scrubs(), Status::ok);
  ASSERT_EQ(driver.scrub(base, kUnit, 0x3f), Status::ok);
  bool all = false;
  EXPECT_EQ(driver.reads_as(0x3f, at(1), kUnit, &all), Status::ok);
  EXPECT_TRUE(all) << "its neighbour is not concerned";
  EXPECT_EQ(driver.contract_violations(), 0u);
  EXPECT_EQ(driver.reads_as(0, base, 2 * kUnit, &all), Status::invalid_argument);
  EXPECT_NE(driver.last_error().find("being scrubbed"), std::string::npos);
  EXPECT_TRUE(all) << "a refused call says nothing";
  EXPECT_EQ(driver.contract_violations(), 1u);
  ASSERT_EQ(driver.wait_for_scrubs(), Status::ok);
  EXPECT_EQ(driver.reads_as(0x3f, base, 2 * kUnit, &all), Status::ok);
  EXPECT_TRUE(all);
  EXPECT_EQ(driver.contract_violations(), 1u);
}

TEST_F(SimDriverTest, KnowsTheByteOfEveryScrubAndLetsTheLastOneCount) {
  commit(0);
  commit(1);
  const auto byte = [&](std::size_t n) { return static_cast<char*>(base) + n; };
  ASSERT_EQ(driver.scrub(base, 2 * kUnit, 0x3f), Status::ok);
  ASSERT_EQ(driver.scrub(byte(kUnit - 1), 2, 0xfe), Status::ok);
  ASSERT_EQ(driver.scrub(byte(kUnit), 1), Status::ok);
  EXPECT_FALSE(driver.is_all(0x3f, base, 1));
  ASSERT_EQ(driver.wait_for_scrubs(), Status::ok);
  EXPECT_TRUE(driver.is_all(0x3f, base, kUnit - 1));
  EXPECT_TRUE(driver.is_all(0xfe, byte(kUnit - 1), 1));
  EXPECT_TRUE(driver.is_all(0, byte(kUnit), 1));
  EXPECT_TRUE(driver.is_all(0x3f, byte(kUnit + 1), kUnit - 1));
  EXPECT_EQ(driver.contract_violations(), 0u);
}

TEST_F(SimDriverTest, LeavesAnythingBehindAScrubThatFails) {
  commit(0);
  ASSERT_EQ(driver.scrub(base, kUnit), Status::ok);
  ASSERT_EQ(driver.wait_for_scrubs(), Status::ok);
  ASSERT_EQ(driver.scrub(base, kUnit), Status::ok);
  driver.fail_call(1, Status::driver_error);
  EXPECT_EQ(driver.wait_for_scrubs(), Status::driver_error);
  EXPECT_FALSE(driver.reads_as_zero(base, 1));
  EXPECT_EQ(driver.wait_for_scrubs(), Status::ok) << "nothing is under way any more";
  EXPECT_FALSE(driver.reads_as_zero(base, 1));
  EXPECT_EQ(driver.touch(base, 1), Status::ok);
}

TEST_F(SimDriverTest, KeepsAHandlesContentsWhereItIsMappedNext) {
  const Handle handle = commit(0);
  ASSERT_EQ(driver.scrub(base, kUnit), Status::ok);
  ASSERT_EQ(driver.wait_for_scrubs(), Status::ok);
  ASSERT_EQ(driver.touch(base, 7), Status::ok);
  ASSERT_EQ(driver.unmap(base, kUnit), Status::ok);
  ASSERT_EQ(driver.map(at(3), kUnit, handle), Status::ok);
  ASSERT_EQ(driver.set_access(at(3), kUnit), Status::ok);
  EXPECT_FALSE(driver.reads_as_zero(at(3), 7));
  EXPECT_TRUE(driver.reads_as_zero(static_cast<char*>(at(3)) + 7, kUnit - 7));
}

TEST_F(SimDriverTest, GivesZeroedMemoryWhereItIsToldTo) {
  SimDriver clean(SimDriver::Options{.fresh_memory_is_zero = true});
  Handle handle;
  ASSERT_EQ(clean.probe(), Status::ok);
  ASSERT_EQ(clean.create(kUnit, &handle), Status::ok);
  EXPECT_TRUE(clean.fresh_memory_is_zero());
  const std::map<std::size_t, std::size_t> all{{0, kUnit}};
  EXPECT_EQ(clean.snapshot().handles.at(handle.value).known.at(0), all);
}

TEST_F(SimDriverTest, SeesATouchThatRunsOverTheEndOfAMapping) {
  commit(0);
  EXPECT_EQ(driver.touch(base, kUnit), Status::ok);
  EXPECT_EQ(driver.touch(base, kUnit + 1), Status::invalid_argument);
  EXPECT_EQ(driver.contract_violations(), 1u);
}

TEST_F(SimDriverTest, HoldsNoMoreMappingsThanItIsToldTo) {
  SimDriver tight(SimDriver::Options{.max_mappings = 1});
  void* address = nullptr;
  Handle first;
  Handle second;
  ASSERT_EQ(tight.probe(), Status::ok);
  ASSERT_EQ(tight.reserve(2 * kUnit, &address), Status::ok);
  ASSERT_EQ(tight.create(kUnit, &first), Status::ok);
  ASSERT_EQ(tight.create(kUnit, &second), Status::ok);
  EXPECT_EQ(tight.map(address, kUnit, first), Status::ok);
  EXPECT_EQ(tight.map(static_cast<char*>(address) + kUnit, kUnit, second), Status::out_of_memory);
  EXPECT_EQ(tight.contract_violations(), 0u);
}

TEST_F(SimDriverTest, NeverHandsOutAnAddressTwice) {
  void* first = nullptr;
  void* second = nullptr;
  ASSERT_EQ(driver.reserve(kUnit, &first), Status::ok);
  ASSERT_EQ(driver.unreserve(first, kUnit), Status::ok);
  ASSERT_EQ(driver.reserve(kUnit, &second), Status::ok);
  EXPECT_NE(first, second);
}

TEST_F(SimDriverTest, MayBeCalledByTwoThreadsAtOnce) {
  const auto work = [&](std::size_t n) {
    for (int round = 0; round < 500; ++round) {
      const Handle handle = commit(n);
      EXPECT_EQ(driver.touch(at(n), kUnit), Status::ok);
      driver.advance(1);
      EXPECT_EQ(driver.unmap(at(n), kUnit), Status::ok);
      EXPECT_EQ(driver.destroy(handle, kUnit), Status::ok);
      // Each thread reads its own failure.
      EXPECT_EQ(driver.unmap(at(n), kUnit), Status::invalid_argument);
      EXPECT_NE(driver.last_error().find("unmap"), std::string::npos);
    }
  };
  std::thread other(work, 1);
  work(2);
  other.join();
  EXPECT_EQ(driver.created_bytes(), 0u);
  EXPECT_EQ(driver.now(), 1'000u);
  EXPECT_EQ(driver.contract_violations(), 1'000u);
}

}  // namespace
}  // namespace kvcached
