#include "kvcached/handle_cache.hpp"

#include <gtest/gtest.h>

#include <chrono>

#include "kvcached/sim_driver.hpp"

namespace kvcached {
namespace {

using Call = SimDriver::Call;
using Clock = HandleCache::Clock;

constexpr std::size_t kGranule = 4096;

class HandleCacheTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(driver.probe(), Status::ok); }
  void TearDown() override {
    cache.trim(Clock::time_point::max());
    EXPECT_EQ(cache.held_bytes(), 0u);
    EXPECT_EQ(driver.created_bytes(), 0u);
    EXPECT_EQ(driver.contract_violations(), 0u);
  }

  Handle create(std::size_t granules) {
    Handle handle;
    EXPECT_EQ(driver.create(granules * kGranule, &handle), Status::ok);
    return handle;
  }
  void put(std::size_t granules) { cache.put(create(granules), granules * kGranule); }

  SimDriver driver{{.granularity = kGranule}};
  HandleCache cache{driver, 4 * kGranule};
};

TEST_F(HandleCacheTest, GivesAHandleOfExactlyTheSizeAsked) {
  put(1);
  put(2);
  Handle handle;
  EXPECT_FALSE(cache.take(3 * kGranule, &handle));
  ASSERT_TRUE(cache.take(2 * kGranule, &handle));
  EXPECT_EQ(cache.held_bytes(), kGranule);
  EXPECT_FALSE(cache.take(2 * kGranule, &handle)) << "it went out once";
  cache.put(handle, 2 * kGranule);
}

TEST_F(HandleCacheTest, GivesTheOneKeptLastFirst) {
  put(1);
  const Handle newest = create(1);
  cache.put(newest, kGranule);
  Handle handle;
  ASSERT_TRUE(cache.take(kGranule, &handle));
  EXPECT_EQ(handle.value, newest.value);
  cache.put(handle, kGranule);
}

TEST_F(HandleCacheTest, DestroysTheOldestWhereThereIsNoRoom) {
  put(2);
  put(1);
  put(2);
  EXPECT_EQ(cache.held_bytes(), 3 * kGranule);
  EXPECT_EQ(driver.created_bytes(), 3 * kGranule);
  Handle handle;
  ASSERT_TRUE(cache.take(kGranule, &handle));
  cache.put(handle, kGranule);
}

TEST_F(HandleCacheTest, DestroysWhatIsLargerThanAllItsRoomAtOnce) {
  put(1);
  put(5);
  EXPECT_EQ(cache.held_bytes(), kGranule);
  EXPECT_EQ(driver.created_bytes(), kGranule);
}

TEST_F(HandleCacheTest, CountsWhatTheDriverWillNotDestroyAndTriesAgain) {
  driver.fail_call(Call::destroy, 1, Status::driver_error);
  cache.discard(create(5), 5 * kGranule);
  EXPECT_EQ(cache.held_bytes(), 5 * kGranule);
  // Older than anything: the next trim of any age takes it.
  cache.trim(Clock::now() - std::chrono::hours(1));
  EXPECT_EQ(cache.held_bytes(), 0u);
}

TEST_F(HandleCacheTest, PassesOverAHandleThatCannotBeDestroyedToMakeRoom) {
  put(2);
  put(2);
  driver.fail_call(Call::destroy, 1, Status::driver_error);
  put(2);
  EXPECT_EQ(cache.held_bytes(), 4 * kGranule);
  EXPECT_EQ(driver.created_bytes(), 4 * kGranule);
}

TEST_F(HandleCacheTest, TrimsByAge) {
  put(1);
  const auto between = Clock::now();
  while (Clock::now() == between) {
  }
  put(2);
  cache.trim(between);
  EXPECT_EQ(cache.held_bytes(), 2 * kGranule);
  EXPECT_EQ(cache.size(), 1u);
}

}  // namespace
}  // namespace kvcached
