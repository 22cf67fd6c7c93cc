// The pattern of KVCACHED_SANITY_CHECK in memory: where it lies, and what it finds.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#include "kvcached/backing.hpp"
#include "kvcached/sanity.hpp"
#include "kvcached/sim_driver.hpp"
#include "sample_geometry.hpp"

namespace kvcached {
namespace {

using Call = SimDriver::Call;

// A floating-point number of `exponent_bits` and `mantissa_bits`, from its bits.
double decode(std::uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double mantissa = bits & ((1U << mantissa_bits) - 1);
  return std::ldexp(1 + mantissa / (1 << mantissa_bits), exponent - bias);
}

TEST(SanityFillTest, IsNearOneInEveryFormatOfACache) {
  const std::uint32_t byte = kSanityFill;
  const std::uint32_t two = byte << 8 | byte;
  for (const double value : {decode(two, 5, 10), decode(two, 8, 7), decode(two << 16 | two, 8, 23),
                             decode(byte, 4, 3), decode(byte, 5, 2)}) {
    EXPECT_GT(value, 0.5);
    EXPECT_LT(value, 2);
  }
}

/// Real memory, extents of a granule and a half, so that neighbours share one.
class SanityFillOnTheHostTest : public testing::Test {
 protected:
  void SetUp() override {
    driver = make_host_driver(std::size_t{16} << 20);
    ASSERT_EQ(driver->probe(), Status::ok) << driver->last_error();
    extent_bytes = driver->granularity() * 3 / 2;
    backing = std::make_unique<Backing>(*driver, block_major(1, 16, extent_bytes, 1), kSanityFill);
    ASSERT_EQ(backing->reserve(), Status::ok);
  }
  [[nodiscard]] std::uint8_t* extent(std::uint32_t number) const {
    return static_cast<std::uint8_t*>(backing->region(0)) + number * extent_bytes;
  }
  [[nodiscard]] bool is_filled(const std::uint8_t* first, std::size_t bytes) const {
    return std::all_of(first, first + bytes, [](std::uint8_t held) { return held == kSanityFill; });
  }
  // The second half of the granule that extents 0 and 1 share is extent 1's.
  [[nodiscard]] std::size_t shared_bytes() const { return driver->granularity() / 2; }

  std::unique_ptr<Driver> driver;
  std::size_t extent_bytes = 0;
  std::unique_ptr<Backing> backing;
};

TEST_F(SanityFillOnTheHostTest, FreshMemoryHoldsIt) {
  ASSERT_EQ(backing->commit(0, 2, 0), Status::ok);
  EXPECT_TRUE(is_filled(extent(0), 2 * extent_bytes));
}

TEST_F(SanityFillOnTheHostTest, MemoryHandedOutAgainHoldsIt) {
  for (int round = 0; round < 3; ++round) {
    ASSERT_EQ(backing->commit(0, 1, 0), Status::ok);
    EXPECT_TRUE(is_filled(extent(0), extent_bytes));
    std::memset(extent(0), 0x55, extent_bytes);
    backing->release(0, 1);
  }
}

TEST_F(SanityFillOnTheHostTest, ReleasedMemoryThatStaysMappedHoldsIt) {
  ASSERT_EQ(backing->commit(0, 1, 0), Status::ok);
  ASSERT_EQ(backing->commit(1, 1, 0), Status::ok);
  std::memset(extent(0), 0x55, 2 * extent_bytes);
  backing->release(1, 1);
  EXPECT_TRUE(is_filled(extent(1), shared_bytes()));
  EXPECT_EQ(extent(1)[-1], 0x55) << "the neighbour's byte";
}

TEST_F(SanityFillOnTheHostTest, AWriteAfterTheReleaseIsFoundAtTheNextCommit) {
  ASSERT_EQ(backing->commit(0, 1, 0), Status::ok);
  ASSERT_EQ(backing->commit(1, 1, 0), Status::ok);
  backing->release(1, 1);
  extent(1)[shared_bytes() - 1] = 0;
  EXPECT_EQ(backing->violation(), "");
  ASSERT_EQ(backing->commit(1, 1, 0), Status::ok);
  EXPECT_EQ(backing->violation(),
            "bytes 98304 to 131072 of region 0 were written to while no extent used them");
  EXPECT_TRUE(is_filled(extent(1), extent_bytes)) << "its next user gets it as any other";
}

TEST_F(SanityFillOnTheHostTest, AWriteBeforeTheFirstCommitIsFoundToo) {
  ASSERT_EQ(backing->commit(0, 1, 0), Status::ok);
  extent(1)[0] = 0;
  ASSERT_EQ(backing->commit(1, 1, 0), Status::ok);
  EXPECT_NE(backing->violation(), "");
}

TEST_F(SanityFillOnTheHostTest, TheFirstOfSeveralIsKept) {
  ASSERT_EQ(backing->commit(0, 1, 0), Status::ok);
  ASSERT_EQ(backing->commit(3, 1, 0), Status::ok);
  extent(1)[0] = 0;
  ASSERT_EQ(backing->commit(1, 1, 0), Status::ok);
  const std::string first = backing->violation();
  extent(2)[extent_bytes - 1] = 0;
  ASSERT_EQ(backing->commit(2, 1, 0), Status::ok);
  EXPECT_EQ(backing->violation(), first);
}

TEST_F(SanityFillOnTheHostTest, WhatUsersWriteIsNoViolation) {
  for (int round = 0; round < 3; ++round) {
    for (std::uint32_t number = 0; number < 8; ++number) {
      ASSERT_EQ(backing->commit(number, 1, 0), Status::ok);
      std::memset(extent(number), 0x55, extent_bytes);
    }
    for (const std::uint32_t number : {1U, 4U, 2U, 0U, 7U, 3U, 6U, 5U}) backing->release(number, 1);
  }
  EXPECT_EQ(backing->violation(), "");
}

/// Scripted failures, the same geometry.
class SanityFillFailureTest : public testing::Test {
 protected:
  static constexpr std::size_t kGranule = 4096;

  void SetUp() override {
    ASSERT_EQ(driver.probe(), Status::ok);
    ASSERT_EQ(backing.reserve(), Status::ok);
    ASSERT_EQ(backing.commit(0, 1, 0), Status::ok);
    ASSERT_EQ(backing.commit(1, 1, 0), Status::ok);
  }
  // Writes to what is extent 1's of the granule it shares with extent 0.
  void write_shared() {
    char* const shared = static_cast<char*>(backing.region(0)) + kGranule * 3 / 2;
    ASSERT_EQ(driver.touch(shared, kGranule / 2), Status::ok);
  }

  SimDriver driver{{.granularity = kGranule}};
  Backing backing{driver, block_major(1, 16, kGranule * 3 / 2, 1), kSanityFill};
};

TEST_F(SanityFillFailureTest, AKeptHandleHoldsThePatternAndNotWhatItsUserWrote) {
  write_shared();
  backing.release(1, 1);
  backing.release(0, 1);
  for (const auto& [number, handle] : driver.snapshot().handles) {
    const std::map<std::size_t, std::size_t> all{{0, handle.bytes}};
    EXPECT_EQ(handle.known.at(kSanityFill), all) << number;
  }
}

TEST_F(SanityFillFailureTest, MemoryThatCouldNotBeFilledIsNotJudged) {
  write_shared();
  driver.fail_call(Call::scrub, 1, Status::driver_error);
  backing.release(1, 1);
  EXPECT_NE(backing.last_error().find("scrub"), std::string::npos);
  ASSERT_EQ(backing.commit(1, 1, 0), Status::ok);
  EXPECT_EQ(backing.violation(), "");
}

TEST_F(SanityFillFailureTest, MemoryWhoseFillWasNotSeenToEndIsNotJudged) {
  driver.fail_call(Call::wait_for_scrubs, 1, Status::driver_error);
  backing.release(1, 1);
  EXPECT_NE(backing.last_error().find("wait_for_scrubs"), std::string::npos);
  write_shared();
  ASSERT_EQ(backing.commit(1, 1, 0), Status::ok);
  EXPECT_EQ(backing.violation(), "");
}

TEST_F(SanityFillFailureTest, AfterACommitWhoseScrubsFailedNothingItTouchedIsJudged) {
  backing.release(1, 1);
  // The commit's wait, and that of the release which undoes it.
  driver.fail_call(Call::wait_for_scrubs, 1, Status::driver_error);
  driver.fail_call(Call::wait_for_scrubs, 2, Status::driver_error);
  ASSERT_EQ(backing.commit(1, 1, 0), Status::driver_error);
  write_shared();
  ASSERT_EQ(backing.commit(1, 1, 0), Status::ok);
  EXPECT_EQ(backing.violation(), "");
}

TEST_F(SanityFillFailureTest, AReleasesWaitThatFailsIsToldToTheUnitsThatWereBegun) {
  ASSERT_EQ(backing.begin_commit(4, 1, 0), Status::ok);
  driver.fail_call(Call::wait_for_scrubs, 1, Status::driver_error);
  backing.release(1, 1);
  ASSERT_EQ(backing.begin_commit(6, 1, 0), Status::ok);
  EXPECT_EQ(backing.finish_commits(), Status::driver_error);
  EXPECT_EQ(backing.mapped_bytes(), 2 * kGranule) << "extent 0 is all there is";
  ASSERT_EQ(backing.commit(4, 1, 0), Status::ok) << "it is told once";
}

TEST_F(SanityFillFailureTest, AUnitRefusedAfterItsFirstScrubMayBeBegunAgainInTheSameRun) {
  ASSERT_EQ(backing.commit(3, 1, 0), Status::ok);
  backing.release(1, 1);
  ASSERT_EQ(backing.begin_commit(6, 1, 0), Status::ok);
  // Extents 1 and 2 make two granules and share one on either side; the third scrub is the last.
  driver.fail_call(Call::scrub, 3, Status::driver_error);
  ASSERT_EQ(backing.begin_commit(1, 2, 0), Status::driver_error);
  ASSERT_EQ(backing.begin_commit(1, 2, 0), Status::ok);
  EXPECT_EQ(backing.finish_commits(), Status::ok);
  EXPECT_EQ(backing.violation(), "");
  EXPECT_EQ(driver.contract_violations(), 0U);
}

TEST_F(SanityFillFailureTest, ARunThatSharesAGranuleFindsAWriteToEitherPart) {
  Backing thirds(driver, block_major(1, 12, kGranule / 3 + 1, 1), kSanityFill);
  ASSERT_EQ(thirds.reserve(), Status::ok);
  ASSERT_EQ(thirds.commit(0, 1, 0), Status::ok);
  ASSERT_EQ(driver.touch(static_cast<char*>(thirds.region(0)) + kGranule * 5 / 6, 1), Status::ok);
  ASSERT_EQ(thirds.begin_commit(1, 1, 0), Status::ok);
  EXPECT_EQ(thirds.violation(), "");
  ASSERT_EQ(thirds.begin_commit(2, 1, 0), Status::ok);
  EXPECT_NE(thirds.violation(), "");
  ASSERT_EQ(thirds.finish_commits(), Status::ok);
  EXPECT_EQ(driver.contract_violations(), 0U);
}

TEST_F(SanityFillFailureTest, AMappingThatNobodyFilledIsNotJudged) {
  // Mapped, but neither filled nor unmapped again: anything may lie there.
  driver.fail_call(Call::scrub, 1, Status::driver_error);
  driver.fail_call(Call::unmap, 1, Status::driver_error);
  ASSERT_EQ(backing.commit(4, 1, 0), Status::driver_error);
  ASSERT_EQ(backing.commit(4, 1, 0), Status::ok);
  EXPECT_EQ(backing.violation(), "");
}

TEST_F(SanityFillFailureTest, ALookThatFailsRefusesTheCommitAndTheNextOneSucceeds) {
  backing.release(1, 1);
  write_shared();
  driver.fail_call(Call::reads_as, 1, Status::driver_error);
  EXPECT_EQ(backing.commit(1, 1, 0), Status::driver_error);
  EXPECT_EQ(backing.violation(), "");
  ASSERT_EQ(backing.commit(1, 1, 0), Status::ok);
  EXPECT_NE(backing.violation(), "");
}

TEST_F(SanityFillFailureTest, WithoutThePatternNobodyLooks) {
  Backing plain(driver, block_major(1, 16, kGranule * 3 / 2, 1));
  ASSERT_EQ(plain.reserve(), Status::ok);
  ASSERT_EQ(plain.commit(0, 1, 0), Status::ok);
  ASSERT_EQ(plain.commit(1, 1, 0), Status::ok);
  plain.release(1, 1);
  ASSERT_EQ(plain.commit(1, 1, 0), Status::ok);
  EXPECT_EQ(driver.calls(Call::reads_as), 1u) << "that of extent 1 in SetUp()";
  plain.release(0, 2);
}

}  // namespace
}  // namespace kvcached
