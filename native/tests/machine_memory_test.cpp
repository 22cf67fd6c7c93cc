#include "../src/driver/host/machine_memory.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "../src/driver/host/headroom.hpp"

namespace kvcached {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kGiB = std::size_t{1} << 30;

// A machine of 64 GiB, 32 GiB of it available, made of files.
class MachineMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    root = std::filesystem::path(testing::TempDir()) /
           testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(root);
    write("proc/meminfo", "MemTotal: 67108864 kB\nMemFree: 1 kB\nMemAvailable: 33554432 kB\n");
  }
  void TearDown() override { std::filesystem::remove_all(root); }

  void write(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  }

  MachineMemory memory() const {
    return MachineMemory((root / "proc").string(), (root / "cgroup").string());
  }

  std::filesystem::path root;
};

TEST_F(MachineMemoryTest, IsTheKernelsEstimateWhereNoGroupLimitsIt) {
  EXPECT_EQ(memory().total(), 64 * kGiB);
  EXPECT_EQ(memory().available(), 32 * kGiB);
}

TEST_F(MachineMemoryTest, ObeysAVersion2GroupAndAnyAboveIt) {
  write("proc/self/cgroup", "0::/kube/pod/engine\n");
  write("cgroup/kube/pod/engine/memory.max", "max\n");
  write("cgroup/kube/pod/engine/memory.current", "1048576\n");
  write("cgroup/kube/pod/memory.max", std::to_string(16 * kGiB));
  write("cgroup/kube/pod/memory.current", std::to_string(6 * kGiB));
  write("cgroup/kube/memory.max", std::to_string(48 * kGiB));
  write("cgroup/kube/memory.current", std::to_string(8 * kGiB));
  EXPECT_EQ(memory().total(), 16 * kGiB);
  EXPECT_EQ(memory().available(), 10 * kGiB);
}

TEST_F(MachineMemoryTest, CountsAGroupsCacheAsReclaimableWhereRoomIsShort) {
  write("proc/self/cgroup", "0::/\n");
  write("cgroup/memory.max", std::to_string(8 * kGiB));
  write("cgroup/memory.current", std::to_string(7 * kGiB));
  write("cgroup/memory.stat", "anon 1\nfile 9\ninactive_file " + std::to_string(2 * kGiB) +
                                  "\nactive_file " + std::to_string(2 * kGiB) + "\n");
  EXPECT_EQ(memory().available(), 4 * kGiB);
}

TEST_F(MachineMemoryTest, ObeysAVersion1GroupAmongOtherControllers) {
  write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:hugetlb,memory:/job\n1:name=systemd:/\n0::/\n");
  write("cgroup/memory/job/memory.limit_in_bytes", std::to_string(12 * kGiB));
  write("cgroup/memory/job/memory.usage_in_bytes", std::to_string(2 * kGiB));
  write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("cgroup/memory/memory.usage_in_bytes", std::to_string(60 * kGiB));
  EXPECT_EQ(memory().total(), 12 * kGiB);
  EXPECT_EQ(memory().available(), 10 * kGiB);
}

TEST_F(MachineMemoryTest, FallsBackToTheMountsRootInAContainer) {
  write("proc/self/cgroup", "4:memory:/docker/0123456789\n");
  write("cgroup/memory/memory.limit_in_bytes", std::to_string(6 * kGiB));
  write("cgroup/memory/memory.usage_in_bytes", std::to_string(1 * kGiB));
  EXPECT_EQ(memory().total(), 6 * kGiB);
  EXPECT_EQ(memory().available(), 5 * kGiB);
}

TEST_F(MachineMemoryTest, HasNothingLeftBeyondALimitThatWasLowered) {
  write("proc/self/cgroup", "0::/\n");
  write("cgroup/memory.max", std::to_string(1 * kGiB));
  write("cgroup/memory.current", std::to_string(2 * kGiB));
  EXPECT_EQ(memory().available(), 0u);
}

TEST_F(MachineMemoryTest, ForbidsNothingWhereTheKernelIsSilent) {
  const MachineMemory silent("/nonexistent", "/nonexistent");
  EXPECT_EQ(silent.total(), 0u);
  EXPECT_EQ(silent.available(), std::numeric_limits<std::size_t>::max());
}

TEST_F(MachineMemoryTest, AgreesWithThisMachine) {
  const MachineMemory real;
  EXPECT_GT(real.total(), 64 * kMiB);
  EXPECT_LE(real.available(), real.total());
}

TEST_F(MachineMemoryTest, LeavesHeadroomForOthers) {
  Headroom headroom(memory());
  EXPECT_EQ(headroom.open(), 64 * kGiB);
  EXPECT_EQ(headroom.reserve(), 512 * kMiB);
  EXPECT_EQ(headroom.spare(), 32 * kGiB - 512 * kMiB);
  EXPECT_FALSE(headroom.take(32 * kGiB));
  EXPECT_TRUE(headroom.take(31 * kGiB));
  headroom.give_back(31 * kGiB);
  EXPECT_EQ(headroom.spare(), 32 * kGiB - 512 * kMiB);
}

TEST_F(MachineMemoryTest, TakesWhatIsPromisedAndNotYetResidentOffEverySample) {
  Headroom headroom(memory());
  headroom.open();
  EXPECT_EQ(headroom.sample(kGiB), 31 * kGiB - 512 * kMiB);
  EXPECT_EQ(headroom.sample(40 * kGiB), 0u);
  EXPECT_FALSE(headroom.take(2 * kGiB, 30 * kGiB));
  EXPECT_TRUE(headroom.take(kGiB, 30 * kGiB));
}

TEST_F(MachineMemoryTest, SamplesAgainAfter64MiB) {
  Headroom headroom(memory());
  headroom.open();
  write("proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 524288 kB\n");
  // Whatever was sampled before, 64 MiB later it is sampled again and the answer is no.
  EXPECT_FALSE(headroom.take(32 * kMiB) && headroom.take(32 * kMiB) && headroom.take(32 * kMiB));
}

}  // namespace
}  // namespace kvcached
