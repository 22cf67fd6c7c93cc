#include "kvcached/slack.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>

#include "test_seed.hpp"

namespace kvcached {
namespace {

TEST(SlackPolicyTest, StartsAtTheLeast) { EXPECT_EQ(SlackPolicy({3, 9}).target(), 3u); }

TEST(SlackPolicyTest, CoversTwiceTheLargestRecentGrowthWithinItsBounds) {
  SlackPolicy slack({1, 10});
  slack.note_growth(3);
  slack.note_growth(1);
  EXPECT_EQ(slack.target(), 6u);
  slack.note_growth(100);
  EXPECT_EQ(slack.target(), 10u);
}

TEST(SlackPolicyTest, ForgetsAGrowthAfterSixtyFourSteps) {
  SlackPolicy slack({1, 10});
  slack.note_growth(4);
  for (int step = 0; step < 63; ++step) slack.note_growth(1);
  EXPECT_EQ(slack.target(), 8u);
  slack.note_growth(1);
  EXPECT_EQ(slack.target(), 2u);
}

TEST(SlackPolicyTest, ForgetsEverythingAtOnceWhenReset) {
  SlackPolicy slack({2, 10});
  slack.note_growth(4);
  slack.reset();
  EXPECT_EQ(slack.target(), 2u);
}

constexpr std::uint64_t kSecond = 1'000'000'000;

TEST(SlackPolicyTest, KnowsWhatWasInUseWithinTheLastSecond) {
  SlackPolicy slack({1, 10});
  const std::uint64_t start = 100 * kSecond;
  slack.note_busy(50, start);
  slack.note_busy(20, start + kSecond / 2);
  EXPECT_EQ(slack.lately_busy(20, start + kSecond / 2), 30u);
  EXPECT_EQ(slack.lately_busy(60, start + kSecond / 2), 0u);
  EXPECT_EQ(slack.lately_busy(15, start + kSecond), 5u);
  EXPECT_EQ(slack.lately_busy(15, start + 2 * kSecond), 0u);
}

TEST(SlackPolicyTest, ForgetsWhatWasInUseWhenReset) {
  SlackPolicy slack({1, 10});
  slack.note_busy(50, 100 * kSecond);
  slack.reset();
  EXPECT_EQ(slack.lately_busy(0, 100 * kSecond), 0u);
}

TEST(SlackPolicyTest, TakesTheLeastWhereTheMostIsBelowIt) {
  SlackPolicy slack({5, 2});
  slack.note_growth(50);
  EXPECT_EQ(slack.target(), 5u);
}

TEST(SlackPolicyTest, AgreesWithTheLargestOfTheLastSixtyFour) {
  for (std::uint64_t seed = first_seed(), last = seed + 5; seed < last; ++seed) {
    SCOPED_TRACE(describe_seed(seed));
    Dice dice(seed);
    SlackPolicy slack({0, 1000});
    std::deque<std::uint32_t> window;
    for (int step = 0; step < 1000; ++step) {
      const std::uint32_t growth = dice.chance(5) ? dice.between(0, 100) : dice.between(0, 5);
      slack.note_growth(growth);
      window.push_back(growth);
      if (window.size() > 64) window.pop_front();
      ASSERT_EQ(slack.target(), 2 * *std::max_element(window.begin(), window.end()));
    }
  }
}

}  // namespace
}  // namespace kvcached
