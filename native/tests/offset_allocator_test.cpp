#include "../src/driver/host/offset_allocator.hpp"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace kvcached {
namespace {

TEST(OffsetAllocator, HandsOutTheLowestOffsetThatFits) {
  OffsetAllocator offsets(100);
  EXPECT_EQ(offsets.take(10), 0u);
  EXPECT_EQ(offsets.take(20), 10u);
  EXPECT_EQ(offsets.take(10), 30u);
  offsets.give_back(0, 10);
  EXPECT_EQ(offsets.take(20), 40u);
  EXPECT_EQ(offsets.take(10), 0u);
}

TEST(OffsetAllocator, JoinsRangesThatComeBackSideBySide) {
  OffsetAllocator offsets(100);
  for (int n = 0; n < 10; ++n) ASSERT_TRUE(offsets.take(10));
  EXPECT_EQ(offsets.gaps(), 0u);
  offsets.give_back(0, 10);
  offsets.give_back(20, 10);
  EXPECT_EQ(offsets.gaps(), 2u);
  offsets.give_back(10, 10);
  EXPECT_EQ(offsets.gaps(), 1u);
  EXPECT_EQ(offsets.take(30), 0u);
}

TEST(OffsetAllocator, HasNothingWhenNoGapIsLargeEnough) {
  OffsetAllocator offsets(20);
  ASSERT_TRUE(offsets.take(10));
  EXPECT_EQ(offsets.take(11), std::nullopt);
  EXPECT_EQ(offsets.take(10), 10u);
  EXPECT_EQ(offsets.take(1), std::nullopt);
}

TEST(OffsetAllocator, NeverHandsOutAByteTwiceAndEndsWhole) {
  constexpr std::uint64_t kBytes = 10'000;
  OffsetAllocator offsets(kBytes);
  std::map<std::uint64_t, std::uint64_t> taken;
  std::mt19937 random(7);
  for (int step = 0; step < 20'000; ++step) {
    if (random() % 2 == 0) {
      const std::size_t bytes = 1 + random() % 97;
      const auto offset = offsets.take(bytes);
      if (!offset) continue;
      const auto after = taken.lower_bound(*offset);
      ASSERT_TRUE(after == taken.end() || *offset + bytes <= after->first);
      if (after != taken.begin()) {
        const auto before = std::prev(after);
        ASSERT_LE(before->first + before->second, *offset);
      }
      taken[*offset] = bytes;
    } else if (!taken.empty()) {
      auto victim = taken.lower_bound(random() % kBytes);
      if (victim == taken.end()) victim = taken.begin();
      offsets.give_back(victim->first, victim->second);
      taken.erase(victim);
    }
  }
  for (const auto& [offset, bytes] : taken) offsets.give_back(offset, bytes);
  EXPECT_EQ(offsets.gaps(), 1u);
  EXPECT_EQ(offsets.take(kBytes), 0u);
}

}  // namespace
}  // namespace kvcached
