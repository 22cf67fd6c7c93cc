#include "kvcached/bitmap.hpp"

#include <gtest/gtest.h>

#include <set>

#include "test_seed.hpp"

namespace kvcached {
namespace {

TEST(BitmapTest, AnEmptySetHasNoFirstNoLastAndNoNext) {
  for (const std::uint32_t size : {0U, 1U, 64U, 65U, 4096U, 4097U}) {
    const Bitmap set(size);
    EXPECT_EQ(set.count(), 0u);
    EXPECT_EQ(set.first(), Bitmap::kNone);
    EXPECT_EQ(set.last(), Bitmap::kNone);
    if (size != 0) {
      EXPECT_EQ(set.next(0), Bitmap::kNone);
      EXPECT_EQ(set.next(size - 1), Bitmap::kNone);
    }
  }
}

TEST(BitmapTest, AddingTwiceAndRemovingTwiceCountOnce) {
  Bitmap set(100);
  set.set(70);
  set.set(70);
  EXPECT_EQ(set.count(), 1u);
  EXPECT_TRUE(set.test(70));
  set.clear(70);
  set.clear(70);
  set.clear(3);
  EXPECT_EQ(set.count(), 0u);
  EXPECT_FALSE(set.test(70));
}

TEST(BitmapTest, FindsMembersAcrossTheEdgesOfItsWords) {
  const std::uint32_t size = 64 * 64 * 64 + 1;
  Bitmap set(size);
  const std::set<std::uint32_t> members{0, 63, 64, 4095, 4096, 64 * 64 * 64 - 1, size - 1};
  for (const std::uint32_t member : members) set.set(member);
  std::set<std::uint32_t> found;
  for (std::uint32_t at = set.first(); at != Bitmap::kNone; at = set.next(at)) found.insert(at);
  EXPECT_EQ(found, members);
  EXPECT_EQ(set.last(), size - 1);
}

TEST(BitmapTest, AgreesWithAnOrderedSet) {
  for (std::uint64_t seed = first_seed(), last = seed + 8; seed < last; ++seed) {
    SCOPED_TRACE(describe_seed(seed));
    Dice dice(seed);
    constexpr std::uint32_t kSizes[] = {1, 63, 64, 65, 1000, 4096, 4097, 300'000};
    const std::uint32_t size = kSizes[seed % 8];
    Bitmap set(size);
    std::set<std::uint32_t> expected;
    for (int turn = 0; turn < 4000; ++turn) {
      const std::uint32_t index = dice.between(0, size - 1);
      // Fills at first, empties at last, so that all levels turn to zero and back.
      if (dice.chance(turn < 2000 ? 70 : 30)) {
        set.set(index);
        expected.insert(index);
      } else if (!expected.empty()) {
        const auto near = expected.lower_bound(index);
        const std::uint32_t member = near == expected.end() ? *expected.begin() : *near;
        set.clear(member);
        expected.erase(member);
      }
      ASSERT_EQ(set.count(), expected.size());
      ASSERT_EQ(set.test(index), expected.contains(index));
      ASSERT_EQ(set.first(), expected.empty() ? Bitmap::kNone : *expected.begin());
      ASSERT_EQ(set.last(), expected.empty() ? Bitmap::kNone : *expected.rbegin());
      const auto above = expected.upper_bound(index);
      ASSERT_EQ(set.next(index), above == expected.end() ? Bitmap::kNone : *above);
    }
  }
}

}  // namespace
}  // namespace kvcached
