#include "kvcached/block_list.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <vector>

#include "test_seed.hpp"

namespace kvcached {
namespace {

std::vector<std::uint32_t> members(const BlockList& list) {
  std::vector<std::uint32_t> blocks;
  for (std::uint32_t block = list.front(); block != BlockList::kNone; block = list.after(block)) {
    blocks.push_back(block);
  }
  return blocks;
}

TEST(BlockListTest, AnEmptyListHasNoFront) {
  const BlockList list(4);
  EXPECT_EQ(list.front(), BlockList::kNone);
  EXPECT_EQ(list.size(), 0u);
}

TEST(BlockListTest, KeepsTheOrderInWhichBlocksCame) {
  BlockList list(8);
  for (const std::uint32_t block : {5U, 0U, 7U}) list.push_back(block);
  EXPECT_EQ(members(list), (std::vector<std::uint32_t>{5, 0, 7}));
}

TEST(BlockListTest, LetsTheFirstTheMiddleAndTheLastGo) {
  BlockList list(8);
  for (std::uint32_t block = 0; block < 5; ++block) list.push_back(block);
  list.remove(0);
  list.remove(2);
  list.remove(4);
  EXPECT_EQ(members(list), (std::vector<std::uint32_t>{1, 3}));
  list.push_back(2);
  EXPECT_EQ(members(list), (std::vector<std::uint32_t>{1, 3, 2}));
}

TEST(BlockListTest, AgreesWithAQueue) {
  for (std::uint64_t seed = first_seed(), last = seed + 5; seed < last; ++seed) {
    SCOPED_TRACE(describe_seed(seed));
    Dice dice(seed);
    BlockList list(50);
    std::deque<std::uint32_t> expected;
    for (int turn = 0; turn < 1000; ++turn) {
      const std::uint32_t block = dice.between(0, 49);
      const auto found = std::find(expected.begin(), expected.end(), block);
      if (found == expected.end()) {
        list.push_back(block);
        expected.push_back(block);
      } else {
        list.remove(block);
        expected.erase(found);
      }
      ASSERT_EQ(list.size(), expected.size());
      ASSERT_EQ(members(list), std::vector<std::uint32_t>(expected.begin(), expected.end()));
    }
  }
}

}  // namespace
}  // namespace kvcached
