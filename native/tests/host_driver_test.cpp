// What is special to the host driver; what every driver must do is in driver_conformance_test.cpp.

#include "../src/driver/host/host_driver.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

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
      HostDriver driver(kBudget);
      void* address = nullptr;
      if (driver.probe() != Status::ok) return 2;
      if (driver.reserve(4 * kUnit, &address) != Status::ok) return 2;
      if (!prepare(driver, address)) return 2;
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
  commit(0);
  EXPECT_TRUE(
      killed_by(run_in_child([&] { return int{*static_cast<volatile char*>(at(0))}; }), SIGSEGV));
}

TEST_F(HostDriverTest, TouchesNothingWhenDestroyedInAForkedChild) {
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

// Uses up the process's mappings, all but some.
class MappingLimit {
 public:
  explicit MappingLimit(std::size_t spare) {
    // Pages of alternating protection cannot merge.
    bytes_ = std::size_t{4096} * 200'000;
    start_ = static_cast<char*>(
        ::mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    std::size_t page = 1;
    while (page * 4096 < bytes_ && ::mprotect(start_ + page * 4096, 4096, PROT_READ) == 0) {
      page += 2;
    }
    // The last few: each of these takes one.
    std::size_t taken = 0;
    for (void* one = nullptr;; ++taken) {
      one = ::mmap(nullptr, 4096, taken % 2 == 0 ? PROT_READ : PROT_NONE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
      if (one == MAP_FAILED) break;
    }
    // Two come back for each page that is like its neighbours again.
    for (; spare != 0 && page > 2; --spare) {
      page -= 2;
      ::mprotect(start_ + page * 4096, 4096, PROT_NONE);
    }
  }
  ~MappingLimit() { ::munmap(start_, bytes_); }
  MappingLimit(const MappingLimit&) = delete;
  MappingLimit& operator=(const MappingLimit&) = delete;

 private:
  char* start_ = nullptr;
  std::size_t bytes_ = 0;
};

TEST_F(HostDriverTest, FailsWithoutATraceAtTheKernelsMappingLimit) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer needs mappings of its own";
  if (driver.max_mappings() > 200'000) GTEST_SKIP() << "vm.max_map_count is too high to reach";
  const int status = run_in_child([] {
    HostDriver child(kBudget);
    void* address = nullptr;
    if (child.probe() != Status::ok) return 1;
    if (child.reserve(8 * kUnit, &address) != Status::ok) return 1;
    const auto unit = [&](std::size_t n) { return static_cast<char*>(address) + n * kUnit; };
    // Mapped in an order that leaves no two side by side in the file: each is a mapping.
    Handle handles[8];
    for (Handle& handle : handles) {
      if (child.create(kUnit, &handle) != Status::ok) return 1;
    }
    const std::size_t order[] = {0, 2, 4, 6, 1, 3, 5, 7};
    for (std::size_t n = 0; n < 8; ++n) {
      if (child.map(unit(n), kUnit, handles[order[n]]) != Status::ok) return 1;
    }
    int failures = 0;
    for (std::size_t spare = 0; spare < 8; ++spare) {
      const MappingLimit limit(spare);
      const Status opened = child.set_access(address, 8 * kUnit);
      if (opened == Status::out_of_memory) {
        ++failures;
        if (child.last_error().find("max_map_count") == std::string::npos) return 2;
        continue;
      }
      if (opened != Status::ok) return 3;
      break;
    }
    if (failures == 0) return 4;
    // Nothing was left open by the failures: one success opens all, and the contents are there.
    if (child.set_access(address, 8 * kUnit) != Status::ok) return 5;
    std::memset(address, 9, 8 * kUnit);
    for (std::size_t n = 0; n < 8; ++n) {
      if (child.unmap(unit(n), kUnit) != Status::ok) return 6;
    }
    return read_smaps().mappings == 0 ? 0 : 7;
  });
  EXPECT_TRUE(succeeded(status)) << WEXITSTATUS(status);
}

TEST_F(HostDriverTest, LeavesNothingOpenWhenAccessFailsHalfway) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer needs mappings of its own";
  if (driver.max_mappings() > 200'000) GTEST_SKIP() << "vm.max_map_count is too high to reach";
  const int status = run_in_child([] {
    for (std::size_t spare = 0; spare < 8; ++spare) {
      HostDriver child(kBudget);
      void* address = nullptr;
      if (child.probe() != Status::ok) return 1;
      if (child.reserve(8 * kUnit, &address) != Status::ok) return 1;
      Handle handles[8];
      for (Handle& handle : handles) {
        if (child.create(kUnit, &handle) != Status::ok) return 1;
      }
      for (std::size_t n = 0; n < 8; ++n) {
        char* const where = static_cast<char*>(address) + n * kUnit;
        if (child.map(where, kUnit, handles[7 - n]) != Status::ok) return 1;
      }
      Status opened = Status::ok;
      {
        const MappingLimit limit(spare);
        opened = child.set_access(address, 8 * kUnit);
      }
      if (opened != Status::ok && read_smaps().mappings != 0) return 2;
      if (child.scrub(address, kUnit) != (opened == Status::ok ? opened : Status::invalid_argument))
        return 3;
    }
    return 0;
  });
  EXPECT_TRUE(succeeded(status)) << WEXITSTATUS(status);
}

TEST_F(HostDriverTest, KeepsAMappingWholeThatItCannotSplit) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer needs mappings of its own";
  if (driver.max_mappings() > 200'000) GTEST_SKIP() << "vm.max_map_count is too high to reach";
  const int status = run_in_child([] {
    HostDriver child(kBudget);
    void* address = nullptr;
    if (child.probe() != Status::ok) return 1;
    if (child.reserve(3 * kUnit, &address) != Status::ok) return 1;
    char* const start = static_cast<char*>(address);
    for (std::size_t n = 0; n < 3; ++n) {
      Handle handle;
      if (!map_new(child, start + n * kUnit, &handle)) return 1;
    }
    if (child.set_access(address, 3 * kUnit) != Status::ok) return 1;
    std::memset(address, 9, 3 * kUnit);
    {
      const MappingLimit limit(0);
      if (child.unmap(start + kUnit, kUnit) != Status::out_of_memory) return 2;
    }
    for (std::size_t n = 0; n < 3 * kUnit; ++n) {
      if (start[n] != 9) return 3;
    }
    return child.unmap(start + kUnit, kUnit) == Status::ok ? 0 : 4;
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
