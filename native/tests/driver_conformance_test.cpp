// What every driver must do, run against each of them. The CUDA cases are skipped, with the
// reason, where there is no usable GPU.

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "cuda_device.hpp"
#include "kvcached/driver.hpp"
#include "kvcached/sim_driver.hpp"

namespace kvcached {
namespace {

constexpr std::size_t kBudget = std::size_t{64} << 20;

// One driver under test, and how to look into its memory.
struct Subject {
  const char* name;
  std::unique_ptr<Driver> (*make)();
  /// Whether its memory can be written and read back.
  bool has_contents;
  /// Whether its memory is bounded by kBudget, and not by a device's size.
  bool has_budget;
};

void PrintTo(const Subject& subject, std::ostream* out) { *out << subject.name; }

std::unique_ptr<Driver> make_sim() {
  SimDriver::Options options;
  options.capacity_bytes = kBudget;
  return std::make_unique<SimDriver>(options);
}

const Subject kSubjects[] = {
    {"host", [] { return make_host_driver(kBudget); }, true, true},
    {"sim", make_sim, false, true},
    {"cuda", [] { return make_cuda_driver(0); }, true, false},
};

class DriverConformance : public testing::TestWithParam<Subject> {
 protected:
  void SetUp() override {
    driver = GetParam().make();
    const Status status = driver->probe();
    if (status == Status::unsupported) GTEST_SKIP() << driver->last_error();
    ASSERT_EQ(status, Status::ok) << driver->last_error();
    unit = driver->granularity();
    if (std::string(driver->name()) == "cuda") device = std::make_unique<CudaDevice>();
    ASSERT_EQ(driver->reserve(kUnits * unit, &base), Status::ok) << driver->last_error();
  }

  void TearDown() override {
    if (base == nullptr) return;
    for (const auto& [address, handle, bytes] : live) {
      EXPECT_EQ(driver->unmap(address, bytes), Status::ok) << driver->last_error();
      EXPECT_EQ(driver->destroy(handle, bytes), Status::ok) << driver->last_error();
    }
    EXPECT_EQ(driver->unreserve(base, kUnits * unit), Status::ok) << driver->last_error();
  }

  std::byte* at(std::size_t n) const { return static_cast<std::byte*>(base) + n * unit; }

  // Memory at the n-th unit, given back at the end.
  Handle commit(std::size_t n, std::size_t units = 1) {
    Handle handle;
    EXPECT_EQ(driver->create(units * unit, &handle), Status::ok) << driver->last_error();
    EXPECT_EQ(driver->map(at(n), units * unit, handle), Status::ok) << driver->last_error();
    EXPECT_EQ(driver->set_access(at(n), units * unit), Status::ok) << driver->last_error();
    live.push_back({at(n), handle, units * unit});
    return handle;
  }

  // Undoes the last commit.
  void release_last() {
    const auto [address, handle, bytes] = live.back();
    live.pop_back();
    ASSERT_EQ(driver->unmap(address, bytes), Status::ok) << driver->last_error();
    ASSERT_EQ(driver->destroy(handle, bytes), Status::ok) << driver->last_error();
  }

  void fill(void* address, std::size_t bytes, int value) const {
    if (device) {
      device->fill(address, bytes, static_cast<unsigned char>(value));
    } else {
      std::memset(address, value, bytes);
    }
  }

  void scrub(void* address, std::size_t bytes, std::uint8_t byte = 0) const {
    EXPECT_EQ(driver->scrub(address, bytes, byte), Status::ok) << driver->last_error();
    EXPECT_EQ(driver->wait_for_scrubs(), Status::ok) << driver->last_error();
  }

  bool reads_as(const void* address, std::size_t bytes, int value) const {
    std::vector<unsigned char> copy(bytes);
    if (device) {
      device->read(copy.data(), address, bytes);
    } else {
      std::memcpy(copy.data(), address, bytes);
    }
    return copy == std::vector<unsigned char>(bytes, static_cast<unsigned char>(value));
  }

  static constexpr std::size_t kUnits = 16;

  struct Live {
    void* address;
    Handle handle;
    std::size_t bytes;
  };

  std::unique_ptr<Driver> driver;
  // Set where memory is read and written by a GPU.
  std::unique_ptr<CudaDevice> device;
  std::size_t unit = 0;
  void* base = nullptr;
  std::vector<Live> live;
};

TEST_P(DriverConformance, NamesItself) { EXPECT_STREQ(driver->name(), GetParam().name); }

TEST_P(DriverConformance, ProbesAgainWithTheSameAnswer) {
  EXPECT_EQ(driver->probe(), Status::ok);
  EXPECT_EQ(driver->granularity(), unit);
}

TEST_P(DriverConformance, RefusesEverythingBeforeProbe) {
  const auto fresh = GetParam().make();
  void* address = nullptr;
  Handle handle;
  MemoryInfo info;
  bool passed = false;
  EXPECT_EQ(fresh->reserve(unit, &address), Status::invalid_argument);
  EXPECT_EQ(fresh->create(unit, &handle), Status::invalid_argument);
  EXPECT_EQ(fresh->wait_for_scrubs(), Status::invalid_argument);
  EXPECT_EQ(fresh->zero_on({}, at(0), unit), Status::invalid_argument);
  EXPECT_EQ(fresh->memory_info(&info), Status::invalid_argument);
  EXPECT_EQ(fresh->event_passed(Event{}, &passed), Status::invalid_argument);
  EXPECT_NE(fresh->last_error().find("probe"), std::string::npos);
}

TEST_P(DriverConformance, CountsInUnitsOfAPowerOfTwo) {
  EXPECT_GE(unit, std::size_t{64} << 10);
  EXPECT_EQ(unit & (unit - 1), 0u);
}

TEST_P(DriverConformance, ReservesAlignedAddressSpaceWithoutTakingMemory) {
  MemoryInfo before;
  MemoryInfo after;
  void* address = nullptr;
  // More than what most machines have, and what a thread sanitizer's address space still holds.
  const std::size_t much = std::size_t{256} << 30;
  ASSERT_EQ(driver->memory_info(&before), Status::ok);
  ASSERT_EQ(driver->reserve(much, &address), Status::ok) << driver->last_error();
  ASSERT_EQ(driver->memory_info(&after), Status::ok);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(address) % (std::size_t{2} << 20), 0u);
  EXPECT_GE(after.free + unit, before.free);
  EXPECT_EQ(driver->unreserve(address, much), Status::ok);
}

TEST_P(DriverConformance, RefusesSizesThatAreNoUnits) {
  void* address = nullptr;
  Handle handle;
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, unit - 1, unit + 1}) {
    EXPECT_EQ(driver->reserve(bytes, &address), Status::invalid_argument);
    EXPECT_EQ(driver->create(bytes, &handle), Status::invalid_argument);
  }
  EXPECT_EQ(address, nullptr);
  EXPECT_EQ(handle.value, 0u);
}

TEST_P(DriverConformance, RefusesToUnreserveWhatIsNoWholeReservation) {
  EXPECT_EQ(driver->unreserve(at(1), unit), Status::invalid_argument);
  EXPECT_EQ(driver->unreserve(base, unit), Status::invalid_argument);
  EXPECT_EQ(driver->unreserve(base, 2 * kUnits * unit), Status::invalid_argument);
}

TEST_P(DriverConformance, RefusesToUnreserveWhatIsStillMapped) {
  commit(kUnits - 1);
  EXPECT_EQ(driver->unreserve(base, kUnits * unit), Status::invalid_argument);
  EXPECT_NE(driver->last_error().find("mapped"), std::string::npos);
}

TEST_P(DriverConformance, KeepsWhatWasWritten) {
  if (!GetParam().has_contents) GTEST_SKIP() << "no contents";
  commit(0);
  commit(3);
  fill(at(0), unit, 0x5a);
  fill(at(3), unit, 0xa5);
  EXPECT_TRUE(reads_as(at(0), unit, 0x5a));
  EXPECT_TRUE(reads_as(at(3), unit, 0xa5));
}

TEST_P(DriverConformance, ShowsOnlyAHandlesOwnContentsOrZerosWhereItIsMappedNext) {
  if (!GetParam().has_contents) GTEST_SKIP() << "no contents";
  const Handle handle = commit(0);
  fill(at(0), unit, 0x77);
  const Handle other = commit(5);
  fill(at(5), unit, 0x55);
  ASSERT_EQ(driver->unmap(at(5), unit), Status::ok);
  ASSERT_EQ(driver->unmap(at(0), unit), Status::ok);
  ASSERT_EQ(driver->map(at(5), unit, handle), Status::ok);
  ASSERT_EQ(driver->set_access(at(5), unit), Status::ok);
  live.front().address = at(5);
  EXPECT_TRUE(reads_as(at(5), unit, 0x77) || reads_as(at(5), unit, 0));
  ASSERT_EQ(driver->map(at(0), unit, other), Status::ok);
  ASSERT_EQ(driver->set_access(at(0), unit), Status::ok);
  live.back().address = at(0);
  EXPECT_TRUE(reads_as(at(0), unit, 0x55) || reads_as(at(0), unit, 0));
}

TEST_P(DriverConformance, MapsAHandleAtOnePlaceAtMost) {
  const Handle handle = commit(0);
  EXPECT_EQ(driver->map(at(1), unit, handle), Status::invalid_argument);
  EXPECT_EQ(driver->map(at(0), unit, handle), Status::invalid_argument);
  ASSERT_EQ(driver->unmap(at(0), unit), Status::ok);
  ASSERT_EQ(driver->map(at(1), unit, handle), Status::ok) << driver->last_error();
  live.back().address = at(1);
}

TEST_P(DriverConformance, GivesFreshMemoryThatIsZeroWhereItPromisesSo) {
  if (!GetParam().has_contents) GTEST_SKIP() << "no contents";
  if (!driver->fresh_memory_is_zero()) GTEST_SKIP() << "no promise";
  for (int round = 0; round < 8; ++round) {
    for (std::size_t n = 0; n < kUnits; ++n) commit(n);
    for (std::size_t n = 0; n < kUnits; ++n) EXPECT_TRUE(reads_as(at(n), unit, 0)) << n;
    fill(base, kUnits * unit, 0xff);
    while (!live.empty()) release_last();
  }
}

TEST_P(DriverConformance, ScrubsToZeroAndNothingElse) {
  commit(0);
  commit(1);
  commit(2);
  if (GetParam().has_contents) fill(base, 3 * unit, 0xff);
  scrub(at(1), unit);
  if (!GetParam().has_contents) return;
  EXPECT_TRUE(reads_as(at(0), unit, 0xff));
  EXPECT_TRUE(reads_as(at(1), unit, 0));
  EXPECT_TRUE(reads_as(at(2), unit, 0xff));
}

TEST_P(DriverConformance, ZeroesOnAStreamFromAnyThreadAndNothingElse) {
  commit(0, 3);
  if (GetParam().has_contents) fill(base, 3 * unit, 0xff);
  Status status = Status::driver_error;
  std::thread worker([&] { status = driver->zero_on({}, at(1), unit); });
  worker.join();
  ASSERT_EQ(status, Status::ok);
  if (auto* const sim = dynamic_cast<SimDriver*>(driver.get())) sim->run_streams();
  if (!GetParam().has_contents) return;
  // On CUDA reads_as() comes behind it on the default stream.
  EXPECT_TRUE(reads_as(at(0), unit, 0xff));
  EXPECT_TRUE(reads_as(at(1), unit, 0));
  EXPECT_TRUE(reads_as(at(2), unit, 0xff));
}

TEST_P(DriverConformance, ScrubsAcrossHandlesAndInsideThem) {
  commit(0, 3);
  commit(3, 3);
  scrub(at(1), 4 * unit);
  if (!GetParam().has_contents) return;
  fill(base, 6 * unit, 0x11);
  scrub(at(1), 4 * unit);
  EXPECT_TRUE(reads_as(at(0), unit, 0x11));
  EXPECT_TRUE(reads_as(at(1), 4 * unit, 0));
  EXPECT_TRUE(reads_as(at(5), unit, 0x11));
}

TEST_P(DriverConformance, ScrubsRangesOfAnySizeAndAlignment) {
  commit(0);
  commit(1);
  if (GetParam().has_contents) fill(base, 2 * unit, 0x11);
  // One block of an extent that shares its granules with its neighbours.
  scrub(at(1) - 1'000, 3'001);
  if (!GetParam().has_contents) return;
  EXPECT_TRUE(reads_as(at(0), unit - 1'000, 0x11));
  EXPECT_TRUE(reads_as(at(1) - 1'000, 3'001, 0));
  EXPECT_TRUE(reads_as(at(1) + 2'001, unit - 2'001, 0x11));
}

TEST_P(DriverConformance, ScrubsWithAnyByte) {
  commit(0);
  commit(1);
  scrub(at(0), 2 * unit, 0x3f);
  scrub(at(1), unit, 0xfe);
  if (!GetParam().has_contents) return;
  EXPECT_TRUE(reads_as(at(0), unit, 0x3f));
  EXPECT_TRUE(reads_as(at(1), unit, 0xfe));
}

TEST_P(DriverConformance, ScrubsWithDifferentBytesSideBySideAndWaitsOnce) {
  commit(0, 6);
  // Neighbours with one byte each, two of the same, a part of what is under way, and zero after
  // all.
  ASSERT_EQ(driver->scrub(at(0), unit, 0x3f), Status::ok) << driver->last_error();
  ASSERT_EQ(driver->scrub(at(1), unit, 0xfe), Status::ok) << driver->last_error();
  ASSERT_EQ(driver->scrub(at(2), unit, 0xfe), Status::ok) << driver->last_error();
  ASSERT_EQ(driver->scrub(at(3), unit), Status::ok) << driver->last_error();
  ASSERT_EQ(driver->scrub(at(4), 2 * unit, 0x11), Status::ok) << driver->last_error();
  ASSERT_EQ(driver->scrub(at(4), 7, 0x22), Status::ok) << driver->last_error();
  ASSERT_EQ(driver->scrub(at(4) + 7, 1, 0x33), Status::ok) << driver->last_error();
  ASSERT_EQ(driver->wait_for_scrubs(), Status::ok) << driver->last_error();
  const auto holds = [this](std::uint8_t byte, const void* address, std::size_t bytes) {
    bool all = false;
    EXPECT_EQ(driver->reads_as(byte, address, bytes, &all), Status::ok) << driver->last_error();
    return all && (!GetParam().has_contents || reads_as(address, bytes, byte));
  };
  EXPECT_TRUE(holds(0x3f, at(0), unit));
  EXPECT_TRUE(holds(0xfe, at(1), 2 * unit));
  EXPECT_TRUE(holds(0, at(3), unit));
  EXPECT_TRUE(holds(0x22, at(4), 7));
  EXPECT_TRUE(holds(0x33, at(4) + 7, 1));
  EXPECT_TRUE(holds(0x11, at(4) + 8, 2 * unit - 8));
}

TEST_P(DriverConformance, TellsWhetherARangeIsOneByteAllOver) {
  commit(0);
  commit(1);
  scrub(at(0), 2 * unit, 0x3f);
  bool all = false;
  ASSERT_EQ(driver->reads_as(0x3f, at(0) + 1, 2 * unit - 1, &all), Status::ok);
  EXPECT_TRUE(all);
  ASSERT_EQ(driver->reads_as(0, at(0), unit, &all), Status::ok);
  EXPECT_FALSE(all);
  scrub(at(1) + 7, 1, 0x3e);
  ASSERT_EQ(driver->reads_as(0x3f, at(1), 8, &all), Status::ok);
  EXPECT_FALSE(all);
  ASSERT_EQ(driver->reads_as(0x3f, at(1), 7, &all), Status::ok);
  EXPECT_TRUE(all);
  EXPECT_EQ(driver->reads_as(0x3f, at(1), unit + 1, &all), Status::invalid_argument);
  EXPECT_TRUE(all) << "a refused call says nothing";
}

TEST_P(DriverConformance, ReadsWhatIsSettledWhileItsNeighbourIsScrubbed) {
  commit(0);
  commit(1);
  scrub(at(0), unit, 0x3f);
  ASSERT_EQ(driver->scrub(at(1), unit, 0xfe), Status::ok) << driver->last_error();
  bool all = false;
  ASSERT_EQ(driver->reads_as(0x3f, at(0), unit, &all), Status::ok) << driver->last_error();
  EXPECT_TRUE(all);
  ASSERT_EQ(driver->wait_for_scrubs(), Status::ok) << driver->last_error();
  ASSERT_EQ(driver->reads_as(0xfe, at(1), unit, &all), Status::ok) << driver->last_error();
  EXPECT_TRUE(all);
}

TEST_P(DriverConformance, WaitsOnceForAnyNumberOfScrubs) {
  EXPECT_EQ(driver->wait_for_scrubs(), Status::ok) << "there is nothing to wait for";
  for (std::size_t n = 0; n < kUnits; ++n) commit(n);
  if (GetParam().has_contents) fill(base, kUnits * unit, 0x11);
  // Neighbours in both directions, one alone, a part of one, and one of them twice.
  for (const std::size_t n : {0u, 1u, 2u, 7u, 6u, 10u, 1u}) {
    ASSERT_EQ(driver->scrub(at(n), unit), Status::ok) << driver->last_error();
  }
  ASSERT_EQ(driver->scrub(at(12) + 5, unit), Status::ok) << driver->last_error();
  ASSERT_EQ(driver->wait_for_scrubs(), Status::ok) << driver->last_error();
  EXPECT_EQ(driver->wait_for_scrubs(), Status::ok);
  if (!GetParam().has_contents) return;
  for (std::size_t n = 0; n < 12; ++n) {
    const bool zero = n <= 2 || n == 6 || n == 7 || n == 10;
    EXPECT_TRUE(reads_as(at(n), unit, zero ? 0 : 0x11)) << n;
  }
  EXPECT_TRUE(reads_as(at(12), 5, 0x11));
  EXPECT_TRUE(reads_as(at(12) + 5, unit, 0));
  EXPECT_TRUE(reads_as(at(13) + 5, unit - 5, 0x11));
}

TEST_P(DriverConformance, ScrubsAsMuchAsADeviceDoesInSeveralTurns) {
  constexpr std::size_t kMuch = 48;  // MiB; more than is handed to a GPU at a time
  void* much = nullptr;
  ASSERT_EQ(driver->reserve(kMuch << 20, &much), Status::ok) << driver->last_error();
  auto* const first = static_cast<std::byte*>(much);
  for (std::size_t mib = 0; mib < kMuch; mib += 8) {
    Handle handle;
    ASSERT_EQ(driver->create(8 << 20, &handle), Status::ok) << driver->last_error();
    ASSERT_EQ(driver->map(first + (mib << 20), 8 << 20, handle), Status::ok);
    ASSERT_EQ(driver->set_access(first + (mib << 20), 8 << 20), Status::ok);
    live.push_back({first + (mib << 20), handle, 8 << 20});
  }
  if (GetParam().has_contents) fill(much, kMuch << 20, 0x11);
  for (std::size_t mib = 0; mib < kMuch; mib += 8) {
    ASSERT_EQ(driver->scrub(first + (mib << 20), 8 << 20), Status::ok) << driver->last_error();
  }
  ASSERT_EQ(driver->wait_for_scrubs(), Status::ok) << driver->last_error();
  if (GetParam().has_contents) {
    EXPECT_TRUE(reads_as(much, kMuch << 20, 0));
  }
  while (!live.empty()) release_last();
  EXPECT_EQ(driver->unreserve(much, kMuch << 20), Status::ok) << driver->last_error();
}

TEST_P(DriverConformance, UnmapsWhatIsBeingScrubbedWithoutHarmToOthers) {
  for (int round = 0; round < 8; ++round) {
    commit(0);
    commit(1);
    ASSERT_EQ(driver->scrub(at(0), unit), Status::ok) << driver->last_error();
    ASSERT_EQ(driver->scrub(at(1), unit), Status::ok) << driver->last_error();
    release_last();
    ASSERT_EQ(driver->wait_for_scrubs(), Status::ok) << driver->last_error();
    if (GetParam().has_contents) {
      EXPECT_TRUE(reads_as(at(0), unit, 0));
    }
    release_last();
  }
}

TEST_P(DriverConformance, RefusesToScrubWhatIsNotAccessible) {
  Handle handle;
  EXPECT_EQ(driver->scrub(at(0), unit), Status::invalid_argument);
  ASSERT_EQ(driver->create(unit, &handle), Status::ok);
  ASSERT_EQ(driver->map(at(0), unit, handle), Status::ok);
  EXPECT_EQ(driver->scrub(at(0), unit), Status::invalid_argument);
  ASSERT_EQ(driver->set_access(at(0), unit), Status::ok);
  EXPECT_EQ(driver->scrub(at(0), unit), Status::ok);
  EXPECT_EQ(driver->scrub(at(0), 2 * unit), Status::invalid_argument);
  EXPECT_EQ(driver->scrub(at(0) + 1, unit), Status::invalid_argument);
  EXPECT_EQ(driver->scrub(at(0) - 1, 2), Status::invalid_argument);
  EXPECT_EQ(driver->scrub(at(0), 0), Status::invalid_argument);
  live.push_back({at(0), handle, unit});
}

TEST_P(DriverConformance, LetsOneCallOpenManyMappingsSideBySide) {
  std::vector<Handle> handles(4);
  // Created and mapped backwards: nothing but their addresses makes them neighbours.
  for (std::size_t n = 4; n-- > 0;) {
    ASSERT_EQ(driver->create(unit, &handles[n]), Status::ok);
    ASSERT_EQ(driver->map(at(n), unit, handles[n]), Status::ok);
    live.push_back({at(n), handles[n], unit});
  }
  ASSERT_EQ(driver->set_access(base, 4 * unit), Status::ok) << driver->last_error();
  if (GetParam().has_contents) {
    fill(base, 4 * unit, 0x3c);
    EXPECT_TRUE(reads_as(base, 4 * unit, 0x3c));
  }
  // Once more changes nothing.
  EXPECT_EQ(driver->set_access(base, 4 * unit), Status::ok);
  EXPECT_EQ(driver->set_access(at(2), 2 * unit), Status::ok);
  if (GetParam().has_contents) {
    EXPECT_TRUE(reads_as(base, 4 * unit, 0x3c));
  }
}

TEST_P(DriverConformance, RefusesAccessToWhatIsNotMappedWhole) {
  commit(1, 2);
  EXPECT_EQ(driver->set_access(at(0), unit), Status::invalid_argument);
  EXPECT_EQ(driver->set_access(at(0), 3 * unit), Status::invalid_argument);
  EXPECT_EQ(driver->set_access(at(1), unit), Status::invalid_argument);
  EXPECT_EQ(driver->set_access(at(2), unit), Status::invalid_argument);
  EXPECT_EQ(driver->set_access(at(1), 3 * unit), Status::invalid_argument);
  EXPECT_EQ(driver->set_access(at(1), 0), Status::invalid_argument);
}

TEST_P(DriverConformance, RefusesToMapOverAMappingOrOutsideAReservation) {
  commit(2, 2);
  Handle handle;
  ASSERT_EQ(driver->create(2 * unit, &handle), Status::ok);
  EXPECT_EQ(driver->map(at(1), 2 * unit, handle), Status::invalid_argument);
  EXPECT_EQ(driver->map(at(2), 2 * unit, handle), Status::invalid_argument);
  EXPECT_EQ(driver->map(at(3), 2 * unit, handle), Status::invalid_argument);
  EXPECT_EQ(driver->map(at(kUnits - 1), 2 * unit, handle), Status::invalid_argument);
  EXPECT_EQ(driver->map(at(kUnits), 2 * unit, handle), Status::invalid_argument);
  EXPECT_EQ(driver->map(nullptr, 2 * unit, handle), Status::invalid_argument);
  EXPECT_EQ(driver->map(at(4) + 1, 2 * unit, handle), Status::invalid_argument);
  // After all these the handle is unmapped and the space beside the mapping free.
  EXPECT_EQ(driver->map(at(4), 2 * unit, handle), Status::ok) << driver->last_error();
  EXPECT_EQ(driver->set_access(at(2), 4 * unit), Status::ok) << driver->last_error();
  live.push_back({at(4), handle, 2 * unit});
}

TEST_P(DriverConformance, RefusesToMapAHandleInPartOrOneThatIsNone) {
  Handle handle;
  ASSERT_EQ(driver->create(2 * unit, &handle), Status::ok);
  EXPECT_EQ(driver->map(base, unit, handle), Status::invalid_argument);
  EXPECT_EQ(driver->map(base, 4 * unit, handle), Status::invalid_argument);
  EXPECT_EQ(driver->map(base, 2 * unit, Handle{}), Status::invalid_argument);
  EXPECT_EQ(driver->map(base, 2 * unit, Handle{~std::uint64_t{0}}), Status::invalid_argument);
  EXPECT_EQ(driver->destroy(handle, 2 * unit), Status::ok);
  EXPECT_EQ(driver->map(base, 2 * unit, handle), Status::invalid_argument);
}

TEST_P(DriverConformance, RefusesToUnmapInPartOrTwice) {
  const Handle handle = commit(0, 2);
  EXPECT_EQ(driver->unmap(at(0), unit), Status::invalid_argument);
  EXPECT_EQ(driver->unmap(at(1), unit), Status::invalid_argument);
  EXPECT_EQ(driver->unmap(at(0), 4 * unit), Status::invalid_argument);
  if (GetParam().has_contents) {
    fill(base, 2 * unit, 0x42);
    EXPECT_TRUE(reads_as(base, 2 * unit, 0x42));
  }
  EXPECT_EQ(driver->unmap(at(0), 2 * unit), Status::ok);
  EXPECT_EQ(driver->unmap(at(0), 2 * unit), Status::invalid_argument);
  live.clear();
  EXPECT_EQ(driver->destroy(handle, 2 * unit), Status::ok);
}

TEST_P(DriverConformance, RefusesToDestroyWhatIsMapped) {
  const Handle handle = commit(0);
  EXPECT_EQ(driver->destroy(handle, unit), Status::invalid_argument);
  if (GetParam().has_contents) {
    fill(base, unit, 0x42);
    EXPECT_TRUE(reads_as(base, unit, 0x42));
  }
}

TEST_P(DriverConformance, RefusesToDestroyTwiceOrWithAnotherSize) {
  Handle handle;
  ASSERT_EQ(driver->create(unit, &handle), Status::ok);
  EXPECT_EQ(driver->destroy(handle, 2 * unit), Status::invalid_argument);
  EXPECT_EQ(driver->destroy(Handle{}, unit), Status::invalid_argument);
  EXPECT_EQ(driver->destroy(handle, unit), Status::ok);
  EXPECT_EQ(driver->destroy(handle, unit), Status::invalid_argument);
}

TEST_P(DriverConformance, SaysWhatFailedInOneLine) {
  ASSERT_EQ(driver->destroy(Handle{}, unit), Status::invalid_argument);
  const std::string message = driver->last_error();
  EXPECT_NE(message.find("destroy"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST_P(DriverConformance, RefusesMoreThanThereIsAndGoesOn) {
  MemoryInfo info;
  ASSERT_EQ(driver->memory_info(&info), Status::ok);
  Handle handle;
  EXPECT_EQ(driver->create((info.total / unit + 1) * unit, &handle), Status::out_of_memory);
  EXPECT_FALSE(driver->last_error().empty());
  EXPECT_EQ(handle.value, 0u);
  commit(0);
}

TEST_P(DriverConformance, RefusesTheHandleThatGoesOverTheBudgetAndNoneBefore) {
  if (!GetParam().has_budget) GTEST_SKIP() << "bounded by the device";
  std::vector<Handle> handles(kBudget / unit);
  for (Handle& handle : handles) {
    ASSERT_EQ(driver->create(unit, &handle), Status::ok) << driver->last_error();
  }
  Handle over;
  EXPECT_EQ(driver->create(unit, &over), Status::out_of_memory);
  MemoryInfo info;
  ASSERT_EQ(driver->memory_info(&info), Status::ok);
  EXPECT_EQ(info.free, 0u);
  EXPECT_EQ(info.total, kBudget);
  // One back, one out; what exists still maps.
  ASSERT_EQ(driver->destroy(handles.back(), unit), Status::ok);
  ASSERT_EQ(driver->create(unit, &handles.back()), Status::ok) << driver->last_error();
  EXPECT_EQ(driver->create(unit, &over), Status::out_of_memory);
  ASSERT_EQ(driver->map(base, unit, handles.back()), Status::ok);
  ASSERT_EQ(driver->set_access(base, unit), Status::ok);
  ASSERT_EQ(driver->scrub(base, unit), Status::ok);
  ASSERT_EQ(driver->unmap(base, unit), Status::ok);
  for (const Handle handle : handles) EXPECT_EQ(driver->destroy(handle, unit), Status::ok);
}

TEST_P(DriverConformance, AccountsForEveryByteTaken) {
  MemoryInfo before;
  MemoryInfo during;
  MemoryInfo after;
  ASSERT_EQ(driver->memory_info(&before), Status::ok);
  commit(0, kUnits);
  ASSERT_EQ(driver->memory_info(&during), Status::ok);
  release_last();
  ASSERT_EQ(driver->memory_info(&after), Status::ok);
  if (!GetParam().has_budget) GTEST_SKIP() << "others may use the device";
  EXPECT_EQ(before.free - during.free, kUnits * unit);
  EXPECT_EQ(after.free, before.free);
}

TEST_P(DriverConformance, TakesTheSameMemoryAgainAndAgain) {
  for (int round = 0; round < 200; ++round) {
    commit(static_cast<std::size_t>(round) % kUnits);
    release_last();
  }
  MemoryInfo info;
  ASSERT_EQ(driver->memory_info(&info), Status::ok);
  if (GetParam().has_budget) {
    EXPECT_EQ(info.free, kBudget);
  }
}

TEST_P(DriverConformance, HasPassedTheEventThatIsNone) {
  bool passed = false;
  ASSERT_EQ(driver->event_passed(Event{}, &passed), Status::ok);
  EXPECT_TRUE(passed);
}

TEST_P(DriverConformance, GivesEverythingBackWhenItIsDestroyed) {
  MemoryInfo before;
  ASSERT_EQ(driver->memory_info(&before), Status::ok);
  {
    const auto other = GetParam().make();
    ASSERT_EQ(other->probe(), Status::ok);
    void* address = nullptr;
    ASSERT_EQ(other->reserve(4 * unit, &address), Status::ok);
    Handle mapped;
    Handle loose;
    ASSERT_EQ(other->create(4 * unit, &mapped), Status::ok);
    ASSERT_EQ(other->create(4 * unit, &loose), Status::ok);
    ASSERT_EQ(other->map(address, 4 * unit, mapped), Status::ok);
    ASSERT_EQ(other->set_access(address, 4 * unit), Status::ok);
  }
  MemoryInfo after;
  ASSERT_EQ(driver->memory_info(&after), Status::ok);
  EXPECT_GE(after.free + unit, before.free);
}

INSTANTIATE_TEST_SUITE_P(Drivers, DriverConformance, testing::ValuesIn(kSubjects),
                         [](const auto& subject) { return std::string(subject.param.name); });

}  // namespace
}  // namespace kvcached
