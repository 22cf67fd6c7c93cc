// Whole lives of a ledger under a virtual clock. The storms look for broken accounts and stolen
// memory; the engines for unfair shares and for memory that goes to and fro. Neither says anything
// about speed, and neither sees what a processor may reorder: ledger_kill_test.cpp has real ones.

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "ledger_storm.hpp"
#include "simulated_engine.hpp"

namespace kvcached {
namespace {

// Of all processes together, until they are left in peace.
constexpr int kOperations = 400;

// KVCACHED_SCHEDULES says otherwise.
std::uint64_t schedules() {
  if (const char* const given = std::getenv("KVCACHED_SCHEDULES")) {
    return std::strtoull(given, nullptr, 10);
  }
  return kFast ? 10'000 : 300;
}

std::string replay(std::uint64_t seed) {
  const testing::TestInfo& test = *testing::UnitTest::GetInstance()->current_test_info();
  return "again with: " + describe_seed(seed) +
         " KVCACHED_SCHEDULES=1 build/native/kvcached_tests" +
         " --gtest_filter=" + test.test_suite_name() + "." + test.name();
}

TEST(LedgerSimulation, KeepsItsPromisesInEverySchedule) {
  std::uint64_t switches = 0;
  std::uint64_t deaths = 0;
  std::uint64_t stops = 0;
  std::uint64_t reclaims = 0;
  const std::uint64_t first = first_seed();
  for (std::uint64_t seed = first; seed < first + schedules(); ++seed) {
    LedgerStorm storm(seed);
    storm.rage(kOperations);
    storm.calm_down();
    storm.check_reclaim();
    storm.check_floor();
    ASSERT_EQ(storm.failure(), "") << replay(seed);
    switches += storm.switches();
    deaths += storm.deaths();
    stops += storm.stops();
    reclaims += storm.reclaims();
  }
  RecordProperty("switches", std::to_string(switches));
  RecordProperty("deaths", std::to_string(deaths));
  RecordProperty("stops", std::to_string(stops));
  RecordProperty("reclaims", std::to_string(reclaims));
  if (schedules() < 100) return;
  // A simulation in which nothing happens proves nothing.
  EXPECT_GT(deaths, schedules());
  EXPECT_GT(reclaims, schedules() / 10);
  if (kFibers) {
    EXPECT_GT(switches, 100 * schedules());
    EXPECT_GT(stops, schedules() / 2);
  }
}

constexpr std::uint64_t kCapacity = 10'000;
constexpr std::uint64_t kLives = kFast ? 12 : 2;

template <typename Life>
void for_every_life(Life life) {
  for (std::uint64_t seed = first_seed(); seed < first_seed() + kLives; ++seed) {
    SCOPED_TRACE(replay(seed));
    life(seed);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(LedgerSimulation, HoldsWeightsWithinFivePercentUnderSaturation) {
  for_every_life([](std::uint64_t seed) {
    Dice dice(seed);
    SimulatedEngines all(kCapacity, seed);
    std::vector<double> weights;
    double sum = 0;
    for (int count = 0; count < 16; ++count) {
      weights.push_back(dice.between(500, 2000) / 1000.0);
      sum += weights.back();
      (void)all.add(weights.back());
    }
    for (SimulatedEngine& engine : all.engines) engine.load.waiting = 400;
    all.run(3);
    std::vector<double> means(weights.size());
    constexpr int kLooks = 200;
    for (int look = 0; look < kLooks; ++look) {
      all.run(0.01);
      for (std::size_t index = 0; index < means.size(); ++index) {
        means[index] += static_cast<double>(all.engines[index].held()) / kLooks;
      }
    }
    EXPECT_TRUE(all.exact);
    for (std::size_t index = 0; index < means.size(); ++index) {
      const double fair = kCapacity * weights[index] / sum;
      EXPECT_NEAR(means[index], fair, 0.05 * fair) << "tenant " << index;
    }
  });
}

TEST(LedgerSimulation, GivesALateComerItsShareAndThenMovesNextToNothing) {
  for_every_life([](std::uint64_t seed) {
    SimulatedEngines all(kCapacity, seed);
    const std::size_t first = all.add();
    all.engines[first].load.waiting = 2000;
    all.run(1);
    EXPECT_GT(all.engines[first].held(), kCapacity * 98 / 100);
    const std::size_t second = all.add();
    all.engines[second].load.waiting = 2000;
    all.run(1);
    EXPECT_NEAR(static_cast<double>(all.engines[second].held()), kCapacity / 2, kCapacity * 0.025);
    const std::uint64_t before = all.given_back();
    all.run(5);
    EXPECT_LT(all.given_back() - before, 5 * kCapacity / 100);
    EXPECT_TRUE(all.exact);
  });
}

TEST(LedgerSimulation, GivesAFloorBackAsFastAsRequestsEnd) {
  for_every_life([](std::uint64_t seed) {
    SimulatedEngines all(kCapacity, seed);
    const std::size_t sleeper = all.add(0.1, 4000);
    for (int count = 0; count < 7; ++count) (void)all.add();
    for (SimulatedEngine& engine : all.engines) engine.load.waiting = 500;
    all.engines[sleeper].load.waiting = 0;
    all.run(3);
    EXPECT_EQ(all.engines[sleeper].held(), 0u);
    all.engines[sleeper].load.waiting = 1000;
    // The longest request that runs is over in 400 ms.
    all.run(0.5);
    EXPECT_GE(all.engines[sleeper].held(), 3980u);
    EXPECT_TRUE(all.exact);
  });
}

TEST(LedgerSimulation, LendsWhatAnIdleTenantDoesNotUseAndIsCalmAfterwards) {
  for_every_life([](std::uint64_t seed) {
    SimulatedEngines all(kCapacity, seed);
    const std::size_t busy = all.add();
    const std::size_t idle = all.add();
    all.engines[idle].load.waiting = 0;
    all.engines[busy].load.waiting = 2000;
    all.run(1);
    EXPECT_GT(all.engines[busy].held(), kCapacity * 98 / 100);
    all.engines[busy].load.waiting = 0;
    all.run(2.5);
    EXPECT_EQ(all.ledger.header.contended, 0u);
    EXPECT_TRUE(all.exact);
  });
}

}  // namespace
}  // namespace kvcached
