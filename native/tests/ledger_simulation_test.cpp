// Whole lives of a ledger under a virtual clock. The storms look for broken accounts and stolen
// memory; the engines for unfair shares and for memory that goes to and fro. Neither says anything
// about speed, and neither sees what a processor may reorder: ledger_kill_test.cpp has real ones.

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "ledger_storm.hpp"

namespace kvcached {
namespace {

// KVCACHED_SCHEDULES says otherwise.
std::uint64_t schedules() {
  if (const char* const given = std::getenv("KVCACHED_SCHEDULES")) {
    return std::strtoull(given, nullptr, 10);
  }
  return kFibers ? 10'000 : 1000;
}

std::string replay(std::uint64_t seed) {
  const testing::TestInfo& test = *testing::UnitTest::GetInstance()->current_test_info();
  return "again with: " + describe_seed(seed) + " KVCACHED_SCHEDULES=1 build/native/kvcached_tests" +
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
    storm.rage(150);
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

}  // namespace
}  // namespace kvcached
