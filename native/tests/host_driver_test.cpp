// What is special to the host driver; what every driver must do is in driver_conformance_test.cpp.

#include "../src/driver/host/host_driver.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "forked_child.hpp"

namespace kvcached {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
#else
constexpr bool kSanitized = false;
#endif

constexpr std::size_t kUnit = std::size_t{64} << 10;
constexpr std::size_t kBudget = std::size_t{64} << 20;
constexpr std::size_t kUnits = 64;

// The kernel's own account of the host drivers' memory in this process.
struct Smaps {
  // What can be read or written: reservations are not counted.
  std::size_t mappings = 0;
  std::size_t rss_bytes = 0;
};

// Nothing else in this process is kept from forked children ("dc", for "do not copy").
Smaps read_smaps() {
  Smaps found;
  bool open = false;
  std::size_t rss_bytes = 0;
  std::ifstream file("/proc/self/smaps");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("Rss:")) {
      rss_bytes = std::stoul(line.substr(4)) * 1024;
    } else if (line.starts_with("VmFlags:")) {
      if ((line + " ").find(" dc ") == std::string::npos) continue;
      if (open) ++found.mappings;
      found.rss_bytes += rss_bytes;
    } else if (line[0] < 'A' || line[0] > 'Z') {
      // A mapping's first line begins with its addresses, the others with a capital letter.
      open = line.find(" ---p ") == std::string::npos;
    }
  }
  return found;
}

// A line of /proc/self/status, in bytes.
std::size_t status_bytes(const std::string& key) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key)) return std::stoul(line.substr(key.size())) * 1024;
  }
  return 0;
}

class HostDriverTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(driver.probe(), Status::ok) << driver.last_error();
    ASSERT_EQ(driver.reserve(kUnits * kUnit, &base), Status::ok) << driver.last_error();
  }

  char* at(std::size_t n) const { return static_cast<char*>(base) + n * kUnit; }

  Handle create(std::size_t units = 1) {
    Handle handle;
    EXPECT_EQ(driver.create(units * kUnit, &handle), Status::ok) << driver.last_error();
    return handle;
  }

  Handle commit(std::size_t n, std::size_t units = 1) {
    const Handle handle = create(units);
    EXPECT_EQ(driver.map(at(n), units * kUnit, handle), Status::ok) << driver.last_error();
    EXPECT_EQ(driver.set_access(at(n), units * kUnit), Status::ok) << driver.last_error();
    return handle;
  }

  // Whether a read of one byte is a segmentation fault. The child is forked before it makes its
  // own driver: it would inherit nothing of this one.
  template <typename Prepare>
  static bool faults_after(Prepare prepare) {
    const int status = run_in_child([&] {
      HostDriver child(kBudget);
      void* address = nullptr;
      if (child.probe() != Status::ok) return 2;
      if (child.reserve(4 * kUnit, &address) != Status::ok) return 2;
      if (!prepare(child, address)) return 2;
      return static_cast<volatile char*>(address)[0] == 0 ? 0 : 1;
    });
    return killed_by(status, SIGSEGV);
  }

  HostDriver driver{kBudget};
  void* base = nullptr;
};

bool map_new(HostDriver& driver, void* address, Handle* handle) {
  return driver.create(kUnit, handle) == Status::ok &&
         driver.map(address, kUnit, *handle) == Status::ok;
}

TEST_F(HostDriverTest, FaultsOnReservedAddressSpace) {
  EXPECT_TRUE(faults_after([](HostDriver&, void*) { return true; }));
}

TEST_F(HostDriverTest, FaultsOnMappedMemoryBeforeAccessIsSet) {
  EXPECT_TRUE(faults_after([](HostDriver& child, void* address) {
    Handle handle;
    return map_new(child, address, &handle);
  }));
}

TEST_F(HostDriverTest, FaultsAgainAfterUnmap) {
  EXPECT_TRUE(faults_after([](HostDriver& child, void* address) {
    Handle handle;
    if (!map_new(child, address, &handle)) return false;
    if (child.set_access(address, kUnit) != Status::ok) return false;
    std::memset(address, 1, kUnit);
    return child.unmap(address, kUnit) == Status::ok;
  }));
}

TEST_F(HostDriverTest, DoesNotFaultOnCommittedMemory) {
  EXPECT_FALSE(faults_after([](HostDriver& child, void* address) {
    Handle handle;
    return map_new(child, address, &handle) && child.set_access(address, kUnit) == Status::ok;
  }));
}

TEST_F(HostDriverTest, ShowsCommittedMemoryInSmapsAndNothingAfterRelease) {
  EXPECT_EQ(read_smaps().rss_bytes, 0u);
  const Handle handle = commit(3, 5);
  // Resident before anything was touched: no page fault is left for the engine.
  EXPECT_EQ(read_smaps().rss_bytes, 5 * kUnit);
  ASSERT_EQ(driver.unmap(at(3), 5 * kUnit), Status::ok);
  EXPECT_EQ(read_smaps().mappings, 0u);
  EXPECT_EQ(read_smaps().rss_bytes, 0u);
  ASSERT_EQ(driver.destroy(handle, 5 * kUnit), Status::ok);
}

TEST_F(HostDriverTest, LeavesNoPageFaultForTheFirstTouch) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer's own memory faults";
  commit(0, kUnits);
  rusage before{};
  rusage after{};
  ::getrusage(RUSAGE_SELF, &before);
  for (std::size_t n = 0; n < kUnits * kUnit; n += 4096) at(0)[n] = 1;
  ::getrusage(RUSAGE_SELF, &after);
  EXPECT_LE(after.ru_minflt - before.ru_minflt, 4) << "1024 pages";
}

TEST_F(HostDriverTest, TakesMemoryWhenAccessIsSetAndNotBefore) {
  const Handle handle = create(8);
  ASSERT_EQ(driver.map(at(0), 8 * kUnit, handle), Status::ok);
  EXPECT_EQ(read_smaps().rss_bytes, 0u);
  MemoryInfo info;
  ASSERT_EQ(driver.memory_info(&info), Status::ok);
  EXPECT_EQ(info.free, kBudget - 8 * kUnit) << "what is promised is not free";
  ASSERT_EQ(driver.set_access(at(0), 8 * kUnit), Status::ok);
  EXPECT_EQ(read_smaps().rss_bytes, 8 * kUnit);
}

TEST_F(HostDriverTest, MergesNeighboursIntoOneMappingInWhateverOrderTheyCome) {
  std::vector<Handle> handles(kUnits);
  for (std::size_t n = 0; n < kUnits; n += 2) handles[n] = commit(n);
  EXPECT_EQ(read_smaps().mappings, kUnits / 2);
  for (std::size_t n = kUnits; n-- > 0;) {
    if (n % 2 == 1) handles[n] = commit(n);
  }
  EXPECT_EQ(read_smaps().mappings, 1u);
  EXPECT_EQ(read_smaps().rss_bytes, kUnits * kUnit);
  // The gaps do, too: unmapped in this order each is a mapping of its own for a while.
  for (const std::size_t first : {1u, 0u}) {
    for (std::size_t n = first; n < kUnits; n += 2) {
      ASSERT_EQ(driver.unmap(at(n), kUnit), Status::ok);
    }
  }
  std::ifstream file("/proc/self/maps");
  std::size_t overlapping = 0;
  for (std::string line; std::getline(file, line);) {
    const std::size_t dash = line.find('-');
    const auto begin = std::stoull(line.substr(0, dash), nullptr, 16);
    const auto end = std::stoull(line.substr(dash + 1), nullptr, 16);
    const auto start = reinterpret_cast<std::uintptr_t>(base);
    if (begin < start + kUnits * kUnit && start < end) ++overlapping;
  }
  EXPECT_EQ(overlapping, 1u);
}

TEST_F(HostDriverTest, OpensAllRunsOrNoneWhereTheProcessMayHaveNoMoreData) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer needs data of its own";
  // Three runs beside open neighbours; the limit has room for the first two.
  const Handle first = commit(3);
  const Handle second = commit(8);
  std::vector<std::size_t> closed{2, 4, 5, 6, 7, 9, 10, 11};
  for (const std::size_t n : closed) {
    ASSERT_EQ(driver.map(at(n), kUnit, create()), Status::ok) << driver.last_error();
  }
  std::memset(at(3), 3, kUnit);
  std::memset(at(8), 8, kUnit);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_DATA, &before), 0);
  rlimit tight = before;
  tight.rlim_cur = status_bytes("VmData:") + 6 * kUnit;
  ASSERT_EQ(::setrlimit(RLIMIT_DATA, &tight), 0);
  const Status refused = driver.set_access(at(2), 10 * kUnit);
  const std::string error = driver.last_error();
  const Smaps smaps = read_smaps();
  ASSERT_EQ(::setrlimit(RLIMIT_DATA, &before), 0);
  EXPECT_EQ(refused, Status::out_of_memory);
  EXPECT_NE(error.find("set_access"), std::string::npos) << error;
  EXPECT_EQ(smaps.mappings, 2u);
  EXPECT_EQ(smaps.rss_bytes, 2 * kUnit);
  ASSERT_EQ(driver.set_access(at(2), 10 * kUnit), Status::ok) << driver.last_error();
  EXPECT_EQ(at(3)[kUnit - 1], 3);
  EXPECT_EQ(at(8)[0], 8);
  EXPECT_EQ(at(11)[0], 0);
  EXPECT_EQ(driver.unmap(at(3), kUnit), Status::ok);
  EXPECT_EQ(driver.destroy(first, kUnit), Status::ok);
  EXPECT_EQ(driver.unmap(at(8), kUnit), Status::ok);
  EXPECT_EQ(driver.destroy(second, kUnit), Status::ok);
}

TEST_F(HostDriverTest, ReturnsEverythingWhenDestroyed) {
  {
    HostDriver other(kBudget);
    void* address = nullptr;
    Handle handle;
    ASSERT_EQ(other.probe(), Status::ok);
    ASSERT_EQ(other.reserve(4 * kUnit, &address), Status::ok);
    ASSERT_TRUE(map_new(other, address, &handle));
    ASSERT_EQ(other.set_access(address, kUnit), Status::ok);
    EXPECT_EQ(read_smaps().mappings, 1u);
    EXPECT_EQ(read_smaps().rss_bytes, kUnit);
  }
  EXPECT_EQ(read_smaps().mappings, 0u);
  EXPECT_EQ(read_smaps().rss_bytes, 0u);
}

TEST_F(HostDriverTest, GivesAForkedChildNeitherMemoryNorADriver) {
  const Handle handle = commit(0);
  std::memset(at(0), 7, kUnit);
  const int status = run_in_child([&] {
    if (read_smaps().mappings != 0) return 1;
    if (read_smaps().rss_bytes != 0) return 2;
    Handle other;
    if (driver.create(kUnit, &other) != Status::unsupported) return 3;
    if (driver.unmap(at(0), kUnit) != Status::unsupported) return 4;
    if (driver.probe() != Status::unsupported) return 5;
    return 0;
  });
  EXPECT_TRUE(succeeded(status)) << WEXITSTATUS(status);
  EXPECT_EQ(at(0)[kUnit - 1], 7);
  EXPECT_EQ(driver.unmap(at(0), kUnit), Status::ok);
  EXPECT_EQ(driver.destroy(handle, kUnit), Status::ok);
}

TEST_F(HostDriverTest, FaultsInAForkedChild) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer may use the address in the child";
  commit(0);
  EXPECT_TRUE(
      killed_by(run_in_child([&] { return int{*static_cast<volatile char*>(at(0))}; }), SIGSEGV));
}

TEST_F(HostDriverTest, TouchesNothingWhenDestroyedInAForkedChild) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer may use the address in the child";
  auto owned = std::make_unique<HostDriver>(kBudget);
  void* address = nullptr;
  ASSERT_EQ(owned->probe(), Status::ok);
  ASSERT_EQ(owned->reserve(kUnit, &address), Status::ok);
  const int status = run_in_child([&] {
    // The child may use the address for something else.
    if (::mmap(address, kUnit, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != address) {
      return 1;
    }
    std::memset(address, 5, kUnit);
    owned.reset();
    return static_cast<volatile char*>(address)[0] == 5 ? 0 : 2;
  });
  EXPECT_TRUE(succeeded(status)) << WEXITSTATUS(status);
}

// Whether the process may read an address, found without touching it.
bool readable(const void* address) {
  int ends[2];
  if (::pipe(ends) != 0) return false;
  const bool read = ::write(ends[1], address, 1) == 1;
  ::close(ends[0]);
  ::close(ends[1]);
  return read;
}

// Uses up the process's mappings. Lives until the process ends.
class MappingLimit {
 public:
  MappingLimit() {
    const std::size_t bytes = kPage * 200'000;
    start_ = static_cast<char*>(
        ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    // Pages of alternating protection cannot merge: each of these makes two mappings more.
    while (::mprotect(start_ + (next_ + 2) * kPage, kPage, PROT_READ) == 0) next_ += 2;
    // And each of these one, up to the one over the limit that mmap still grants.
    for (int n = 0; n < 16; ++n) {
      (void)::mmap(nullptr, kPage, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    }
  }

  // Lets two more mappings be made.
  void spare_two() {
    ::mprotect(start_ + next_ * kPage, kPage, PROT_NONE);
    next_ -= 2;
  }

 private:
  static constexpr std::size_t kPage = 4096;
  char* start_ = nullptr;
  std::size_t next_ = 1;
};

class HostDriverAtTheMappingLimit : public HostDriverTest {
 protected:
  void SetUp() override {
    HostDriverTest::SetUp();
    if (kSanitized) GTEST_SKIP() << "a sanitizer needs mappings of its own";
    if (driver.max_mappings() > 150'000) GTEST_SKIP() << "vm.max_map_count is too high to reach";
  }

  // Runs `use(child, address)` in a child with a driver of its own and a reservation.
  template <typename Use>
  static int in_child(Use use) {
    return run_in_child([&] {
      HostDriver child(kBudget);
      void* address = nullptr;
      if (child.probe() != Status::ok) return 1;
      if (child.reserve(kUnits * kUnit, &address) != Status::ok) return 1;
      return use(child, static_cast<char*>(address));
    });
  }
};

TEST_F(HostDriverAtTheMappingLimit, OpensAllOrNothing) {
  const int status = in_child([](HostDriver& child, char* start) {
    // Eight handles with gaps on both sides: two mappings more than before.
    char* const first = start + kUnit;
    for (std::size_t n = 0; n < 8; ++n) {
      Handle handle;
      if (!map_new(child, first + n * kUnit, &handle)) return 2;
    }
    MappingLimit limit;
    int failures = 0;
    // One round finds room for one mapping of the two.
    for (int round = 0; round < 8; ++round, limit.spare_two()) {
      const Status opened = child.set_access(first, 8 * kUnit);
      for (std::size_t n = 0; n < 8; ++n) {
        if (readable(first + n * kUnit) != (opened == Status::ok)) return 3;
      }
      if (readable(start) || readable(first + 8 * kUnit)) return 4;
      if (opened == Status::ok) break;
      if (opened != Status::out_of_memory) return 5;
      if (child.last_error().find("max_map_count") == std::string::npos) return 6;
      ++failures;
    }
    if (failures == 0) return 7;
    // What failed was not used up: it holds memory, and everything can be unmapped.
    for (int n = 0; n < 100; ++n) limit.spare_two();
    if (child.set_access(first, 8 * kUnit) != Status::ok) return 8;
    std::memset(first, 9, 8 * kUnit);
    for (std::size_t n = 0; n < 8; ++n) {
      if (child.unmap(first + n * kUnit, kUnit) != Status::ok) return 9;
    }
    return read_smaps().mappings == 0 ? 0 : 10;
  });
  EXPECT_TRUE(succeeded(status)) << WEXITSTATUS(status);
}

TEST_F(HostDriverAtTheMappingLimit, OpensWhatLiesBesideOpenMemory) {
  const int status = in_child([](HostDriver& child, char* start) {
    Handle handle;
    for (std::size_t n = 1; n < 8; ++n) {
      if (!map_new(child, start + n * kUnit, &handle)) return 2;
    }
    for (const std::size_t n : {3, 5}) {
      if (child.set_access(start + n * kUnit, kUnit) != Status::ok) return 3;
    }
    const MappingLimit limit;
    // Three runs, and borders move or go.
    if (child.set_access(start + kUnit, 7 * kUnit) != Status::ok) return 4;
    std::memset(start + kUnit, 9, 7 * kUnit);
    return readable(start) || readable(start + 8 * kUnit) ? 5 : 0;
  });
  EXPECT_TRUE(succeeded(status)) << WEXITSTATUS(status);
}

TEST_F(HostDriverAtTheMappingLimit, KeepsAMappingWholeThatItCannotSplit) {
  const int status = in_child([](HostDriver& child, char* start) {
    for (std::size_t n = 0; n < 3; ++n) {
      Handle handle;
      if (!map_new(child, start + n * kUnit, &handle)) return 2;
    }
    if (child.set_access(start, 3 * kUnit) != Status::ok) return 2;
    std::memset(start, 9, 3 * kUnit);
    MappingLimit limit;
    // A part in the middle costs two mappings more; the second round finds room for one.
    for (int round = 0; round < 2; ++round, limit.spare_two()) {
      if (child.unmap(start + kUnit, kUnit) != Status::out_of_memory) return 3;
      for (std::size_t n = 0; n < 3 * kUnit; ++n) {
        if (start[n] != 9) return 4;
      }
      std::memset(start, 9, 3 * kUnit);
    }
    return child.unmap(start + kUnit, kUnit) == Status::ok ? 0 : 5;
  });
  EXPECT_TRUE(succeeded(status)) << WEXITSTATUS(status);
}

TEST_F(HostDriverAtTheMappingLimit, GivesAMappingOfItsOwnBack) {
  const int status = in_child([](HostDriver& child, char* start) {
    Handle handle;
    if (!map_new(child, start + kUnit, &handle)) return 2;
    if (child.set_access(start + kUnit, kUnit) != Status::ok) return 2;
    MappingLimit limit;
    if (child.unmap(start + kUnit, kUnit) != Status::ok) return 3;
    if (readable(start + kUnit)) return 4;
    if (child.destroy(handle, kUnit) != Status::ok) return 5;
    // With room again, the same place is used again.
    limit.spare_two();
    if (!map_new(child, start + kUnit, &handle)) return 6;
    if (child.set_access(start + kUnit, kUnit) != Status::ok) return 7;
    for (std::size_t n = 0; n < kUnit; ++n) {
      if (start[kUnit + n] != 0) return 8;
    }
    return 0;
  });
  EXPECT_TRUE(succeeded(status)) << WEXITSTATUS(status);
}

TEST_F(HostDriverTest, TakesTheMachinesMemoryWhereNoBudgetIsGiven) {
  HostDriver unbounded(0);
  ASSERT_EQ(unbounded.probe(), Status::ok) << unbounded.last_error();
  MemoryInfo info;
  ASSERT_EQ(unbounded.memory_info(&info), Status::ok);
  EXPECT_EQ(info.total, MachineMemory().total());
  EXPECT_LT(info.free, info.total);
}

TEST_F(HostDriverTest, RefusesWhatTheMachineCannotSpare) {
  const std::filesystem::path proc = testing::TempDir() + "kvcached_proc";
  std::filesystem::create_directories(proc);
  const auto write = [&](const char* available) {
    std::ofstream(proc / "meminfo")
        << "MemTotal: 1048576 kB\nMemAvailable: " << available << " kB\n";
  };
  // 16 MiB stay free for others: 1 MiB is left.
  write("17408");
  HostDriver poor(kBudget, MachineMemory(proc.string(), proc.string()));
  ASSERT_EQ(poor.probe(), Status::ok) << poor.last_error();
  MemoryInfo info;
  ASSERT_EQ(poor.memory_info(&info), Status::ok);
  EXPECT_EQ(info.free, std::size_t{1} << 20);
  EXPECT_EQ(info.total, kBudget);
  Handle handle;
  EXPECT_EQ(poor.create(2 << 20, &handle), Status::out_of_memory);
  EXPECT_NE(poor.last_error().find("machine"), std::string::npos) << poor.last_error();
  EXPECT_EQ(poor.create(1 << 20, &handle), Status::ok) << poor.last_error();
  // The kernel does not know of it yet: it counts all the same, until it is resident.
  ASSERT_EQ(poor.memory_info(&info), Status::ok);
  EXPECT_EQ(info.free, 0u);
  void* address = nullptr;
  ASSERT_EQ(poor.reserve(1 << 20, &address), Status::ok);
  ASSERT_EQ(poor.map(address, 1 << 20, handle), Status::ok);
  ASSERT_EQ(poor.set_access(address, 1 << 20), Status::ok);
  ASSERT_EQ(poor.memory_info(&info), Status::ok);
  EXPECT_EQ(info.free, std::size_t{1} << 20);
  write("0");
  ASSERT_EQ(poor.memory_info(&info), Status::ok);
  EXPECT_EQ(info.free, 0u);
  std::filesystem::remove_all(proc);
}

}  // namespace
}  // namespace kvcached
