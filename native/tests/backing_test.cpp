#include "kvcached/backing.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "kvcached/sanity.hpp"
#include "kvcached/sim_driver.hpp"
#include "sample_geometry.hpp"
#include "test_seed.hpp"

namespace kvcached {
namespace {

using Call = SimDriver::Call;

constexpr std::size_t kGranule = 4096;
constexpr auto kForever = HandleCache::Clock::time_point::max();

/// Regions on a simulated device, and what an engine does there.
class Rig {
 public:
  explicit Rig(const Geometry& geometry, SimDriver::Options options = {.granularity = kGranule},
               std::uint8_t fill_byte = 0)
      : driver(options), fill(fill_byte) {
    EXPECT_EQ(driver.probe(), Status::ok);
    backing = std::make_unique<Backing>(driver, geometry, fill_byte);
    EXPECT_EQ(backing->reserve(), Status::ok);
  }
  ~Rig() {
    backing.reset();
    EXPECT_EQ(driver.snapshot(), SimDriver::Snapshot{}) << "something was not given back";
    EXPECT_EQ(driver.contract_violations(), 0u);
  }

  Status commit(std::uint32_t first, std::uint32_t count = 1, std::uint64_t limit = 0) {
    const Status status = backing->commit(first, count, limit);
    check_accounts();
    return status;
  }
  void release(std::uint32_t first, std::uint32_t count = 1) {
    backing->release(first, count);
    check_accounts();
  }
  void check_accounts() const {
    EXPECT_EQ(backing->held_bytes(), driver.created_bytes());
    EXPECT_EQ(backing->mapped_bytes(), driver.mapped_bytes());
  }

  /// Writes to every byte of a unit, as an engine may once it is committed.
  void write(std::uint32_t first, std::uint32_t count = 1) {
    for (const ByteRange& range : backing->geometry().bytes_of(first, count)) {
      EXPECT_EQ(driver.touch(at(range), range.end - range.begin), Status::ok);
    }
  }
  [[nodiscard]] bool is_zero(std::uint32_t first, std::uint32_t count = 1) {
    return is_all(0, first, count);
  }
  /// Whether a unit holds what memory is handed out with.
  [[nodiscard]] bool is_fresh(std::uint32_t first, std::uint32_t count = 1) {
    return is_all(fill, first, count);
  }
  [[nodiscard]] bool is_all(std::uint8_t byte, std::uint32_t first, std::uint32_t count) {
    bool all = true;
    for (const ByteRange& range : backing->geometry().bytes_of(first, count)) {
      all = all && driver.is_all(byte, at(range), range.end - range.begin);
    }
    return all;
  }
  /// Whether a unit holds what write() wrote, in its first and last byte of every range.
  [[nodiscard]] bool is_written(std::uint32_t first, std::uint32_t count = 1) {
    bool written = true;
    for (const ByteRange& range : backing->geometry().bytes_of(first, count)) {
      char* const begin = at(range);
      written = written && !driver.is_all(fill, begin, 1) &&
                !driver.is_all(fill, begin + (range.end - range.begin - 1), 1);
    }
    return written;
  }
  [[nodiscard]] char* at(const ByteRange& range) const {
    return static_cast<char*>(backing->region(range.region)) + range.begin;
  }

  SimDriver driver;
  std::uint8_t fill;
  std::unique_ptr<Backing> backing;
};

Geometry four_layers() { return layers_apart(4, 16, kGranule, 2); }
Geometry together() { return block_major(4, 16, kGranule / 2, 1); }
// One block takes one granule and a half.
Geometry shared() { return block_major(1, 16, kGranule * 3 / 2, 1); }

TEST(BackingTest, CommittedExtentsAreZeroAndReleasedOnesGone) {
  Rig rig(four_layers());
  ASSERT_EQ(rig.commit(1), Status::ok);
  EXPECT_TRUE(rig.is_zero(1));
  EXPECT_EQ(rig.backing->mapped_bytes(), 8 * kGranule);
  rig.write(1);
  rig.release(1);
  EXPECT_EQ(rig.backing->mapped_bytes(), 0u);
  ASSERT_EQ(rig.commit(1), Status::ok);
  EXPECT_TRUE(rig.is_zero(1));
}

TEST(BackingTest, AUnitTakesOneHandleARegionPart) {
  Rig rig(four_layers());
  ASSERT_EQ(rig.commit(0, 4), Status::ok);
  EXPECT_EQ(rig.driver.calls(Call::create), 4u);
  EXPECT_EQ(rig.driver.snapshot().mappings.size(), 4u);
  Rig one(together());
  ASSERT_EQ(one.commit(0, 8), Status::ok);
  EXPECT_EQ(one.driver.calls(Call::create), 1u);
}

TEST(BackingTest, FreshMemoryIsScrubbedOnlyWhereTheDriverPromisesNoZeros) {
  Rig dirty(together());
  ASSERT_EQ(dirty.commit(0), Status::ok);
  EXPECT_EQ(dirty.driver.calls(Call::scrub), 1u);
  Rig clean(together(), {.granularity = kGranule, .fresh_memory_is_zero = true});
  ASSERT_EQ(clean.commit(0), Status::ok);
  EXPECT_EQ(clean.driver.calls(Call::scrub), 0u);
  EXPECT_TRUE(clean.is_zero(0));
  clean.write(0);
  clean.release(0);
  ASSERT_EQ(clean.commit(0), Status::ok);
  EXPECT_EQ(clean.driver.calls(Call::create), 1u);
  EXPECT_TRUE(clean.is_zero(0)) << "a handle used again holds what its last user wrote";
}

TEST(BackingTest, SeveralUnitsAreZeroAfterOneWait) {
  Rig rig(four_layers());
  for (const std::uint32_t first : {0u, 1u, 4u}) {
    ASSERT_EQ(rig.backing->begin_commit(first, 1, 0), Status::ok);
    rig.check_accounts();
  }
  EXPECT_EQ(rig.driver.calls(Call::wait_for_scrubs), 0u);
  EXPECT_FALSE(rig.is_zero(0)) << "the device has not been waited for";
  ASSERT_EQ(rig.backing->finish_commits(), Status::ok);
  EXPECT_EQ(rig.driver.calls(Call::wait_for_scrubs), 1u);
  EXPECT_TRUE(rig.is_zero(0, 2));
  EXPECT_TRUE(rig.is_zero(4));
  ASSERT_EQ(rig.backing->finish_commits(), Status::ok) << "there is nothing left to finish";
  EXPECT_EQ(rig.driver.calls(Call::wait_for_scrubs), 1u);
}

TEST(BackingTest, AUnitThatIsRefusedLeavesThoseBegunBeforeItAlone) {
  Rig rig(four_layers(), {.capacity_bytes = 16 * kGranule, .granularity = kGranule});
  ASSERT_EQ(rig.backing->begin_commit(0, 1, 0), Status::ok);
  EXPECT_EQ(rig.backing->begin_commit(1, 2, 0), Status::out_of_memory);
  rig.check_accounts();
  ASSERT_EQ(rig.backing->finish_commits(), Status::ok);
  EXPECT_EQ(rig.backing->mapped_bytes(), 8 * kGranule);
  EXPECT_TRUE(rig.is_zero(0));
}

TEST(BackingTest, WhereTheScrubsFailNoneOfTheUnitsIsCommitted) {
  Rig rig(shared());
  ASSERT_EQ(rig.commit(1), Status::ok);
  rig.write(1);
  const SimDriver::Snapshot before = rig.driver.snapshot();
  // Both share a granule with the unit that is there.
  ASSERT_EQ(rig.backing->begin_commit(0, 1, 0), Status::ok);
  ASSERT_EQ(rig.backing->begin_commit(2, 2, 0), Status::ok);
  rig.driver.fail_call(Call::wait_for_scrubs, 1, Status::driver_error);
  EXPECT_EQ(rig.backing->finish_commits(), Status::driver_error);
  EXPECT_NE(rig.backing->last_error().find("scripted"), std::string::npos);
  rig.check_accounts();
  EXPECT_EQ(rig.driver.snapshot().mappings, before.mappings);
  ASSERT_EQ(rig.commit(0), Status::ok);
  ASSERT_EQ(rig.commit(2, 2), Status::ok);
  EXPECT_TRUE(rig.is_zero(0));
  EXPECT_TRUE(rig.is_zero(2, 2));
  EXPECT_TRUE(rig.is_written(1));
}

TEST(BackingTest, UnitsThatShareAGranuleMayBeBegunTogether) {
  Rig rig(shared());
  ASSERT_EQ(rig.commit(0, 3), Status::ok);
  rig.write(0, 3);
  rig.release(1, 2);
  for (const std::uint32_t first : {2u, 1u}) {
    ASSERT_EQ(rig.backing->begin_commit(first, 1, 0), Status::ok);
  }
  ASSERT_EQ(rig.backing->finish_commits(), Status::ok);
  EXPECT_TRUE(rig.is_zero(1, 2));
  EXPECT_TRUE(rig.is_written(0));
}

TEST(BackingTest, AReleasedHandleIsKeptHeldAndUsedAgain) {
  Rig rig(together());
  ASSERT_EQ(rig.commit(0), Status::ok);
  rig.write(0);
  rig.release(0);
  EXPECT_EQ(rig.backing->held_bytes(), 2 * kGranule);
  EXPECT_EQ(rig.backing->mapped_bytes(), 0u);
  ASSERT_EQ(rig.commit(5), Status::ok);
  EXPECT_EQ(rig.driver.calls(Call::create), 1u);
  EXPECT_EQ(rig.backing->held_bytes(), 2 * kGranule);
  EXPECT_TRUE(rig.is_zero(5));
}

TEST(BackingTest, KeptHandlesGoWhenNobodyWantedThemForAWhile) {
  Rig rig(together());
  ASSERT_EQ(rig.commit(0, 2), Status::ok);
  const auto before = HandleCache::Clock::now();
  rig.release(0, 2);
  EXPECT_EQ(rig.backing->trim(before - std::chrono::seconds(1)), 1u);
  EXPECT_EQ(rig.backing->held_bytes(), 4 * kGranule);
  EXPECT_EQ(rig.backing->trim(HandleCache::Clock::now()), 0u);
  EXPECT_EQ(rig.backing->held_bytes(), 0u);
  rig.check_accounts();
}

TEST(BackingTest, KeepsNoHandleWhereThatSavesNothing) {
  const auto host = make_host_driver(std::size_t{1} << 20);
  ASSERT_EQ(host->probe(), Status::ok) << host->last_error();
  Backing backing(*host, block_major(1, 16, host->granularity(), 1));
  ASSERT_EQ(backing.reserve(), Status::ok);
  ASSERT_EQ(backing.commit(0, 1, 0), Status::ok);
  EXPECT_EQ(backing.held_bytes(), host->granularity());
  backing.release(0, 1);
  EXPECT_EQ(backing.held_bytes(), 0u);
  EXPECT_FALSE(backing.keeps_handles());
  MemoryInfo info;
  ASSERT_EQ(host->memory_info(&info), Status::ok);
  EXPECT_EQ(info.free, info.total);
}

TEST(BackingTest, KeptHandlesOfAnotherSizeMakeRoomForACreate) {
  Rig rig(together(), {.capacity_bytes = 4 * kGranule, .granularity = kGranule});
  ASSERT_EQ(rig.commit(0), Status::ok);
  rig.release(0);
  ASSERT_EQ(rig.commit(2, 2), Status::ok);
  EXPECT_EQ(rig.backing->held_bytes(), 4 * kGranule);
}

TEST(BackingTest, TheLimitCountsWhatIsKeptAndGivesItBackFirst) {
  Rig rig(together());
  ASSERT_EQ(rig.commit(0), Status::ok);
  rig.release(0);
  EXPECT_EQ(rig.commit(2, 2, 4 * kGranule), Status::ok);
  EXPECT_EQ(rig.commit(4, 1, 4 * kGranule), Status::out_of_memory);
  EXPECT_NE(rig.backing->last_error().find("limit"), std::string::npos);
  EXPECT_EQ(rig.backing->held_bytes(), 4 * kGranule);
  EXPECT_EQ(rig.commit(4, 1, 6 * kGranule), Status::ok);
}

TEST(BackingTest, SharedGranulesCountOnceAndStayWhileANeighbourUsesThem) {
  Rig rig(shared());
  ASSERT_EQ(rig.commit(0), Status::ok);
  ASSERT_EQ(rig.commit(1), Status::ok);
  EXPECT_EQ(rig.backing->mapped_bytes(), 3 * kGranule);
  rig.write(0);
  rig.write(1);
  rig.release(0);
  EXPECT_EQ(rig.backing->mapped_bytes(), 2 * kGranule);
  EXPECT_TRUE(rig.is_written(1));
  ASSERT_EQ(rig.commit(0), Status::ok);
  EXPECT_TRUE(rig.is_zero(0)) << "its part of the shared granule held the last user's bytes";
  EXPECT_TRUE(rig.is_written(1)) << "the neighbour's bytes are not ours to scrub";
  rig.release(1);
  rig.release(0);
  EXPECT_EQ(rig.backing->mapped_bytes(), 0u);
}

TEST(BackingTest, WhatTheLimitLeavesCanAllBeUsedWhereGranulesAreShared) {
  Rig rig(shared());
  const std::uint64_t limit = 24 * kGranule;
  for (std::uint32_t extent = 0; extent < 16; ++extent) {
    ASSERT_EQ(rig.commit(extent, 1, limit), Status::ok) << extent;
  }
  EXPECT_EQ(rig.backing->held_bytes(), limit);
}

TEST(BackingTest, ReservingIsAllOrNothing) {
  for (std::uint64_t n = 1; n <= 3; ++n) {
    SimDriver driver({.granularity = kGranule});
    ASSERT_EQ(driver.probe(), Status::ok);
    Backing backing(driver, regions_apart(3, 4, kGranule, 1));
    driver.fail_call(Call::reserve, n, Status::out_of_memory);
    EXPECT_EQ(backing.reserve(), Status::out_of_memory);
    EXPECT_EQ(driver.snapshot(), SimDriver::Snapshot{});
    EXPECT_EQ(backing.reserve(), Status::ok);
    EXPECT_EQ(driver.snapshot().reservations.size(), 3u);
    EXPECT_EQ(backing.reserve(), Status::ok) << "a second time changes nothing";
    EXPECT_EQ(driver.snapshot().reservations.size(), 3u);
  }
}

TEST(BackingTest, AGeometryThatCannotBeBackedReservesNothing) {
  SimDriver driver({.granularity = kGranule});
  ASSERT_EQ(driver.probe(), Status::ok);
  Backing backing(driver, Geometry{});
  EXPECT_EQ(backing.reserve(), Status::invalid_argument);
  EXPECT_EQ(driver.snapshot(), SimDriver::Snapshot{});
}

TEST(BackingTest, ResettingGivesEverythingBackAndStartsAnew) {
  Rig rig(shared());
  ASSERT_EQ(rig.commit(0), Status::ok);
  ASSERT_EQ(rig.commit(1), Status::ok);
  rig.release(1);
  rig.backing->reset();
  rig.check_accounts();
  EXPECT_EQ(rig.driver.snapshot(), SimDriver::Snapshot{});
  ASSERT_EQ(rig.backing->reserve(), Status::ok);
  ASSERT_EQ(rig.commit(0), Status::ok);
  rig.release(0);
  EXPECT_EQ(rig.backing->mapped_bytes(), 0u);
}

/// What a commit is tried on: some extents are in use around it, some handles are kept.
struct Scene {
  const char* name;
  Geometry geometry;
  SimDriver::Options options;
  std::function<void(Rig&)> prepare;
  std::uint32_t first;
  std::uint32_t count;
};

std::vector<Scene> scenes() {
  const SimDriver::Options roomy{.granularity = kGranule};
  return {
      {"layers apart", four_layers(), roomy, [](Rig& rig) { EXPECT_EQ(rig.commit(0), Status::ok); },
       3, 2},
      {"kept handles of this size", four_layers(), roomy,
       [](Rig& rig) {
         EXPECT_EQ(rig.commit(0), Status::ok);
         rig.write(0);
         rig.release(0);
       },
       2, 1},
      {"kept handles of another size in the way",
       together(),
       {.capacity_bytes = 6 * kGranule, .granularity = kGranule},
       [](Rig& rig) {
         EXPECT_EQ(rig.commit(0), Status::ok);
         EXPECT_EQ(rig.commit(1), Status::ok);
         rig.release(0);
       },
       4,
       2},
      {"between neighbours that share its granules", shared(), roomy,
       [](Rig& rig) {
         EXPECT_EQ(rig.commit(2), Status::ok);
         EXPECT_EQ(rig.commit(3), Status::ok);
         EXPECT_EQ(rig.commit(4), Status::ok);
         for (std::uint32_t extent = 2; extent < 5; ++extent) rig.write(extent);
         rig.release(3);
       },
       3, 1},
      {"next to one neighbour", shared(), roomy,
       [](Rig& rig) {
         EXPECT_EQ(rig.commit(2), Status::ok);
         rig.write(2);
       },
       3, 3},
  };
}

// What must not change: what is mapped where, and, kept handles apart, what exists.
void expect_unchanged(const SimDriver::Snapshot& before, const SimDriver::Snapshot& after) {
  EXPECT_EQ(after.reservations, before.reservations);
  EXPECT_EQ(after.mappings, before.mappings);
  for (const auto& [handle, allocation] : before.handles) {
    if (!allocation.mapped) continue;
    ASSERT_TRUE(after.handles.contains(handle));
    EXPECT_TRUE(after.handles.at(handle).mapped);
  }
}

std::uint64_t calls_of_commit(const Scene& scene, std::uint8_t fill) {
  Rig rig(scene.geometry, scene.options, fill);
  scene.prepare(rig);
  const std::uint64_t before = rig.driver.calls();
  EXPECT_EQ(rig.commit(scene.first, scene.count), Status::ok);
  return rig.driver.calls() - before;
}

/// The same with zeros, as engines run, and with the sanity check's pattern.
class BackingFillTest : public testing::TestWithParam<std::uint8_t> {};
INSTANTIATE_TEST_SUITE_P(Fills, BackingFillTest, testing::Values(0, kSanityFill),
                         [](const auto& test) { return test.param == 0 ? "Zero" : "Pattern"; });

TEST_P(BackingFillTest, WhicheverCallOfACommitFailsItLeavesEverythingAsItWas) {
  for (const Scene& scene : scenes()) {
    const std::uint64_t calls = calls_of_commit(scene, GetParam());
    ASSERT_GT(calls, 2u);
    std::uint64_t refused = 0;
    for (std::uint64_t n = 1; n <= calls; ++n) {
      for (const Status failure : {Status::out_of_memory, Status::driver_error}) {
        SCOPED_TRACE(std::string(scene.name) + ", call " + std::to_string(n));
        Rig rig(scene.geometry, scene.options, GetParam());
        scene.prepare(rig);
        const SimDriver::Snapshot before = rig.driver.snapshot();
        rig.driver.fail_call(n, failure);
        const Status status = rig.commit(scene.first, scene.count);
        if (status != Status::ok) {
          ++refused;
          // A kept handle that cannot be destroyed leaves no room for the one wanted.
          EXPECT_TRUE(status == failure || status == Status::out_of_memory);
          EXPECT_NE(rig.backing->last_error(), "");
          expect_unchanged(before, rig.driver.snapshot());
          ASSERT_EQ(rig.commit(scene.first, scene.count), Status::ok);
        }
        EXPECT_TRUE(rig.is_fresh(scene.first, scene.count));
        rig.write(scene.first, scene.count);
        rig.release(scene.first, scene.count);
        EXPECT_EQ(rig.backing->violation(), "");
      }
    }
    // A refused create may be made good by giving kept handles back; the others may not.
    EXPECT_GT(refused, calls) << scene.name;
  }
}

TEST_P(BackingFillTest, WhereUndoingFailsTooTheRestIsCountedAndUsedAgain) {
  for (const Scene& scene : scenes()) {
    const std::uint64_t calls = calls_of_commit(scene, GetParam());
    for (std::uint64_t n = 1; n <= calls; ++n) {
      for (const Call undo : {Call::unmap, Call::destroy}) {
        for (std::uint64_t m = 1; m <= 4; ++m) {
          SCOPED_TRACE(std::string(scene.name) + ", call " + std::to_string(n) + ", undo " +
                       std::to_string(m));
          Rig rig(scene.geometry, scene.options, GetParam());
          scene.prepare(rig);
          rig.driver.fail_call(n, Status::driver_error);
          for (std::uint64_t later = 1; later <= m; ++later) {
            rig.driver.fail_call(undo, later, Status::driver_error);
          }
          (void)rig.commit(scene.first, scene.count);
          rig.driver.clear_failures();
          rig.check_accounts();
          // In parts this time: what was left over need not fit what is wanted.
          for (std::uint32_t extent = scene.first; extent < scene.first + scene.count; ++extent) {
            const Status status = rig.commit(extent);
            ASSERT_EQ(status, Status::ok);
            EXPECT_TRUE(rig.is_fresh(extent));
            rig.write(extent);
          }
          for (std::uint32_t extent = scene.first; extent < scene.first + scene.count; ++extent) {
            EXPECT_TRUE(rig.is_written(extent));
          }
          EXPECT_EQ(rig.backing->violation(), "");
        }
      }
    }
  }
}

TEST(BackingFailureTest, AnUnmapThatFailsLeavesTheMemoryHeldAndScrubbedBeforeItsNextUse) {
  for (const std::uint32_t again : {1U, 2U, 4U}) {
    Rig rig(together());
    ASSERT_EQ(rig.commit(0, 2), Status::ok);
    rig.write(0, 2);
    rig.driver.fail_call(Call::unmap, 1, Status::driver_error);
    rig.release(0, 2);
    EXPECT_EQ(rig.backing->mapped_bytes(), 4 * kGranule);
    EXPECT_NE(rig.backing->last_error().find("unmap"), std::string::npos);
    // A unit smaller, equal and larger than what was left over.
    ASSERT_EQ(rig.commit(0, again), Status::ok);
    EXPECT_TRUE(rig.is_zero(0, again));
    rig.write(0, again);
    rig.release(0, again);
    EXPECT_EQ(rig.backing->mapped_bytes(), 0u);
  }
}

TEST(BackingFailureTest, AMappingLeftWithoutAccessIsOpenedBeforeItIsUsed) {
  Rig rig(together());
  rig.driver.fail_call(Call::set_access, 1, Status::driver_error);
  rig.driver.fail_call(Call::unmap, 1, Status::driver_error);
  EXPECT_EQ(rig.commit(0), Status::driver_error);
  EXPECT_EQ(rig.backing->mapped_bytes(), 2 * kGranule);
  rig.driver.fail_call(Call::set_access, 1, Status::driver_error);
  EXPECT_EQ(rig.commit(0), Status::driver_error);
  EXPECT_EQ(rig.commit(0), Status::ok);
  EXPECT_TRUE(rig.is_zero(0));
}

TEST(BackingFailureTest, ADestroyThatFailsLeavesTheMemoryHeldUntilOneSucceeds) {
  Rig rig(together());
  ASSERT_EQ(rig.commit(0), Status::ok);
  rig.release(0);
  rig.driver.fail_call(Call::destroy, 1, Status::driver_error);
  EXPECT_EQ(rig.backing->trim(kForever), 1u);
  EXPECT_EQ(rig.backing->held_bytes(), 2 * kGranule);
  EXPECT_EQ(rig.backing->trim(kForever), 0u);
  EXPECT_EQ(rig.backing->held_bytes(), 0u);
  rig.check_accounts();
}

TEST(BackingFailureTest, WhatCannotBeUnmappedAtTheEndKeepsItsAddressSpace) {
  Rig rig(together());
  ASSERT_EQ(rig.commit(0), Status::ok);
  rig.driver.fail_call(Call::unmap, 1, Status::driver_error);
  rig.backing->reset();
  rig.check_accounts();
  EXPECT_EQ(rig.driver.snapshot().reservations.size(), 1u);
  EXPECT_EQ(rig.backing->reserve(), Status::ok);
  ASSERT_EQ(rig.commit(0), Status::ok);
  EXPECT_TRUE(rig.is_zero(0));
}

Geometry random_geometry(Dice& dice) {
  const std::uint32_t blocks = dice.between(4, 40);
  const std::uint64_t bytes = dice.between(1, 12) * kGranule / 4;
  const std::uint32_t per_extent = dice.between(1, 4);
  switch (dice.between(0, 2)) {
    case 0:
      return layers_apart(dice.between(1, 3), blocks, bytes, per_extent);
    case 1:
      return regions_apart(dice.between(1, 3), blocks, bytes, per_extent);
    default:
      return block_major(dice.between(1, 3), blocks, bytes, per_extent, dice.between(0, 1) * 512);
  }
}

struct Unit {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};

// Up to four extents in a row that are not committed, or none.
Unit free_unit(Dice& dice, const std::vector<bool>& committed) {
  const auto extents = static_cast<std::uint32_t>(committed.size());
  Unit unit{dice.between(0, extents - 1), 0};
  const std::uint32_t most = dice.between(1, 4);
  while (unit.count < most && unit.first + unit.count < extents &&
         !committed[unit.first + unit.count]) {
    ++unit.count;
  }
  return unit;
}

Unit take_any(Dice& dice, std::vector<Unit>& units) {
  std::swap(units[dice.between(0, static_cast<std::uint32_t>(units.size()) - 1)], units.back());
  const Unit unit = units.back();
  units.pop_back();
  return unit;
}

TEST_P(BackingFillTest, AnySequenceKeepsItsAccountsAndItsContents) {
  for (std::uint64_t seed = first_seed(), last = seed + 60; seed < last; ++seed) {
    SCOPED_TRACE(describe_seed(seed));
    Dice dice(seed);
    const Geometry geometry = random_geometry(dice);
    const std::size_t capacity = dice.chance(50) ? std::size_t{1} << 30 : 24 * kGranule;
    const bool failing = dice.chance(60);
    Rig rig(geometry,
            {.capacity_bytes = capacity,
             .granularity = kGranule,
             .fresh_memory_is_zero = dice.chance(50)},
            GetParam());
    std::vector<bool> committed(geometry.num_extents(), false);
    std::vector<Unit> units;
    for (int turn = 0; turn < 150; ++turn) {
      if (failing && dice.chance(30)) {
        const auto call = static_cast<Call>(dice.between(
            static_cast<std::uint32_t>(Call::create), static_cast<std::uint32_t>(Call::reads_as)));
        rig.driver.fail_call(call, dice.between(1, 4), Status::driver_error);
      }
      if (dice.chance(55)) {
        const Unit unit = free_unit(dice, committed);
        if (unit.count == 0) continue;
        const std::uint64_t limit = dice.chance(30) ? dice.between(1, 30) * kGranule : 0;
        const Status status = rig.commit(unit.first, unit.count, limit);
        if (status == Status::ok) {
          if (limit != 0) {
            ASSERT_LE(rig.backing->held_bytes(), limit);
          }
          ASSERT_TRUE(rig.is_fresh(unit.first, unit.count));
          rig.write(unit.first, unit.count);
          std::fill_n(committed.begin() + unit.first, unit.count, true);
          units.push_back(unit);
        } else if (!failing && limit == 0) {
          ASSERT_EQ(status, Status::out_of_memory);
          ASSERT_LT(capacity, std::size_t{1} << 30);
        }
      } else if (!units.empty()) {
        const Unit unit = take_any(dice, units);
        rig.release(unit.first, unit.count);
        std::fill_n(committed.begin() + unit.first, unit.count, false);
      } else {
        (void)rig.backing->trim(kForever);
      }
      rig.check_accounts();
      for (const Unit& unit : units) ASSERT_TRUE(rig.is_written(unit.first, unit.count));
      ASSERT_EQ(rig.backing->violation(), "");
      if (HasFailure()) return;
    }
    rig.driver.clear_failures();
    for (const Unit& unit : units) rig.release(unit.first, unit.count);
    if (!failing) {
      EXPECT_EQ(rig.backing->mapped_bytes(), 0u);
      EXPECT_EQ(rig.backing->trim(kForever), 0u);
      EXPECT_EQ(rig.driver.created_bytes(), 0u);
    }
  }
}

TEST_P(BackingFillTest, AnySequenceOfRunsWithReleasesBetweenKeepsItsContents) {
  for (std::uint64_t seed = first_seed(), last = seed + 60; seed < last; ++seed) {
    SCOPED_TRACE(describe_seed(seed));
    Dice dice(seed);
    const Geometry geometry = random_geometry(dice);
    const bool failing = dice.chance(60);
    Rig rig(geometry, {.granularity = kGranule}, GetParam());
    std::vector<bool> committed(geometry.num_extents(), false);
    std::vector<Unit> units;
    const auto mark = [&](const Unit& unit, bool value) {
      std::fill_n(committed.begin() + unit.first, unit.count, value);
    };
    for (int turn = 0; turn < 60; ++turn) {
      if (failing && dice.chance(40)) {
        const auto call = static_cast<Call>(dice.between(
            static_cast<std::uint32_t>(Call::create), static_cast<std::uint32_t>(Call::reads_as)));
        rig.driver.fail_call(call, dice.between(1, 6), Status::driver_error);
      }
      std::vector<Unit> run;
      for (std::uint32_t left = dice.between(1, 5); left != 0; --left) {
        const Unit unit = free_unit(dice, committed);
        if (unit.count != 0 && rig.backing->begin_commit(unit.first, unit.count, 0) == Status::ok) {
          run.push_back(unit);
          mark(unit, true);
        }
        if (!units.empty() && dice.chance(40)) {
          const Unit gone = take_any(dice, units);
          rig.release(gone.first, gone.count);
          mark(gone, false);
        }
      }
      const Status status = rig.backing->finish_commits();
      ASSERT_TRUE(failing || status == Status::ok);
      for (const Unit& unit : run) {
        if (status == Status::ok) {
          ASSERT_TRUE(rig.is_fresh(unit.first, unit.count));
          rig.write(unit.first, unit.count);
          units.push_back(unit);
        } else {
          mark(unit, false);
        }
      }
      rig.check_accounts();
      for (const Unit& unit : units) ASSERT_TRUE(rig.is_written(unit.first, unit.count));
      ASSERT_EQ(rig.backing->violation(), "");
      if (HasFailure()) return;
    }
    rig.driver.clear_failures();
  }
}

}  // namespace
}  // namespace kvcached
