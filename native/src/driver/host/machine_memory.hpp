#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvcached {

/// How much memory this process may use on this machine: the kernel's estimate, or a control
/// group's limit (version 1 or 2, any level above the process) where that is lower.
///
/// Memory beyond it is not refused by the kernel: a process is killed for it, so the host driver
/// has to ask first. Each call reads files under /proc and /sys, some 10 to 50 us.
class MachineMemory {
 public:
  /// The arguments are for tests.
  explicit MachineMemory(std::string proc = "/proc", std::string cgroups = "/sys/fs/cgroup");

  /// Bytes there are; 0 when the kernel does not say.
  [[nodiscard]] std::size_t total() const;

  /// Bytes that can still be taken without swapping or killing; the largest number when the
  /// kernel does not say.
  [[nodiscard]] std::size_t available() const;

 private:
  // One control group on the way from the process's own to the root.
  struct Level {
    std::string directory;
    bool version_2 = false;
  };

  [[nodiscard]] std::uint64_t limit_of(const Level& level) const;

  std::string meminfo_;
  std::vector<Level> levels_;
};

}  // namespace kvcached
