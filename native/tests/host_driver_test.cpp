// What is special to the host driver; what every driver must do is in driver_conformance_test.cpp.

#include "../src/driver/host/host_driver.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
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

// The kernel's own account of a process's "/memfd:kvcached" mappings.
struct Smaps {
  std::size_t mappings = 0;
  std::size_t rss_bytes = 0;
};

Smaps read_smaps() {
  Smaps found;
  bool ours = false;
  std::ifstream file("/proc/self/smaps");
  for (std::string line; std::getline(file, line);) {
    // A mapping's first line begins with its addresses, the others with a capital letter.
    if (line[0] >= 'A' && line[0] <= 'Z') {
      if (ours && line.starts_with("Rss:")) {
        found.rss_bytes += std::stoul(line.substr(4)) * 1024;
      }
    } else {
      ours = line.find("/memfd:kvcached") != std::string::npos;
      if (ours) ++found.mappings;
    }
  }
  return found;
}

// The bytes of memory behind the process's open "kvcached" files; nothing if none is open.
std::optional<std::size_t> allocated_bytes() {
  std::optional<std::size_t> bytes;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const auto target = std::filesystem::read_symlink(entry.path(), gone);
    if (gone || target.string().find("/memfd:kvcached") == std::string::npos) continue;
    struct stat status{};
    if (::stat(entry.path().c_str(), &status) != 0) continue;
    bytes = bytes.value_or(0) + static_cast<std::size_t>(status.st_blocks) * 512;
  }
  return bytes;
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
  EXPECT_EQ(allocated_bytes(), 5 * kUnit);
  ASSERT_EQ(driver.unmap(at(3), 5 * kUnit), Status::ok);
  EXPECT_EQ(read_smaps().mappings, 0u);
  EXPECT_EQ(allocated_bytes(), 5 * kUnit);
  ASSERT_EQ(driver.destroy(handle, 5 * kUnit), Status::ok);
  EXPECT_EQ(allocated_bytes(), 0u);
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

TEST_F(HostDriverTest, TakesMemoryWhenAHandleIsCreatedAndNotLater) {
  create(8);
  EXPECT_EQ(allocated_bytes(), 8 * kUnit);
}

TEST_F(HostDriverTest, MergesNeighboursIntoOneMapping) {
  for (std::size_t n = 0; n < kUnits; ++n) commit(n);
  EXPECT_EQ(read_smaps().mappings, 1u);
  EXPECT_EQ(read_smaps().rss_bytes, kUnits * kUnit);
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
    EXPECT_EQ(allocated_bytes(), kUnit);
    EXPECT_EQ(read_smaps().mappings, 1u);
  }
  EXPECT_EQ(allocated_bytes(), 0u);
  EXPECT_EQ(read_smaps().mappings, 0u);
}

TEST_F(HostDriverTest, GivesAForkedChildNeitherMemoryNorDescriptor) {
  const Handle handle = commit(0);
  std::memset(at(0), 7, kUnit);
  const int status = run_in_child([&] {
    if (read_smaps().mappings != 0) return 1;
    if (allocated_bytes().has_value()) return 2;
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

TEST_F(HostDriverTest, SaysWhenAProcessMayNotGrowFiles) {
  const int status = run_in_child([] {
    const rlimit limit{1 << 20, 1 << 20};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
    HostDriver limited(kBudget);
    if (limited.probe() != Status::unsupported) return 2;
    return limited.last_error().find("ulimit -f") != std::string::npos ? 0 : 3;
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
    // Ranges of 8 handles, mapped backwards: no two merge. The range's left neighbour is open and
    // merges with its first handle, so that taking that one back would split a mapping.
    constexpr std::size_t kRanges = kUnits / 16;
    const auto range = [&](std::size_t n) { return start + n * 16 * kUnit; };
    for (std::size_t n = 0; n < kRanges; ++n) {
      Handle handles[9];
      for (Handle& handle : handles) {
        if (child.create(kUnit, &handle) != Status::ok) return 2;
      }
      const std::size_t order[] = {0, 1, 8, 7, 6, 5, 4, 3, 2};
      for (std::size_t k = 0; k < 9; ++k) {
        if (child.map(range(n) + k * kUnit, kUnit, handles[order[k]]) != Status::ok) return 2;
      }
      if (child.set_access(range(n), kUnit) != Status::ok) return 2;
    }
    MappingLimit limit;
    int failures = 0;
    for (std::size_t n = 0; n < kRanges; ++n, limit.spare_two(), limit.spare_two()) {
      char* const first = range(n) + kUnit;
      const Status opened = child.set_access(first, 8 * kUnit);
      for (std::size_t k = 0; k < 8; ++k) {
        if (readable(first + k * kUnit) != (opened == Status::ok)) return 3;
      }
      if (!readable(range(n)) || readable(first + 8 * kUnit)) return 4;
      if (opened == Status::ok) break;
      if (opened != Status::out_of_memory) return 5;
      if (child.last_error().find("max_map_count") == std::string::npos) return 6;
      ++failures;
    }
    if (failures == 0) return 7;
    // What failed was not used up: with room again it succeeds, and everything can be unmapped.
    for (int n = 0; n < 100; ++n) limit.spare_two();
    for (std::size_t n = 0; n < kRanges; ++n) {
      if (child.set_access(range(n), 9 * kUnit) != Status::ok) return 8;
      std::memset(range(n), 9, 9 * kUnit);
      for (std::size_t k = 0; k < 9; ++k) {
        if (child.unmap(range(n) + k * kUnit, kUnit) != Status::ok) return 9;
      }
    }
    return read_smaps().mappings == 0 ? 0 : 10;
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
    if (child.unmap(start + kUnit, kUnit) != Status::out_of_memory) return 3;
    for (std::size_t n = 0; n < 3 * kUnit; ++n) {
      if (start[n] != 9) return 4;
    }
    limit.spare_two();
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
    // With room again, the same place and the same part of the file are used again.
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
  write("0");
  ASSERT_EQ(poor.memory_info(&info), Status::ok);
  EXPECT_EQ(info.free, 0u);
  std::filesystem::remove_all(proc);
}

}  // namespace
}  // namespace kvcached
