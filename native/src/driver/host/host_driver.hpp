#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "../last_error.hpp"
#include "../memory_map.hpp"
#include "headroom.hpp"
#include "kvcached/driver.hpp"
#include "machine_memory.hpp"

namespace kvcached {

/// Memory of this machine: private anonymous pages, put under parts of reserved address space.
///
/// The pages belong to their addresses. create() therefore only accounts for memory, map() only
/// records where it will be, and set_access() makes it exist; unmap() returns it to the kernel.
///
/// In a forked child neither the address space nor the memory exists; every call there answers
/// Status::unsupported, and destroying the object does nothing.
class HostDriver final : public Driver {
 public:
  /// `budget_bytes` as in make_host_driver; `memory` is for tests.
  explicit HostDriver(std::size_t budget_bytes, MachineMemory memory = MachineMemory());
  /// Returns to the kernel whatever the caller left.
  ~HostDriver() override;

  [[nodiscard]] const char* name() const noexcept override { return "host"; }
  [[nodiscard]] Status probe() override;
  [[nodiscard]] std::size_t granularity() const noexcept override;
  // The kernel's work is per page, so a larger handle saves nothing.
  [[nodiscard]] std::size_t largest_useful_handle() const noexcept override {
    return granularity();
  }
  // A handle holds no memory, and one used again has nothing to offer but a scrub.
  [[nodiscard]] bool handles_are_worth_keeping() const noexcept override { return false; }
  [[nodiscard]] std::size_t max_mappings() const noexcept override { return max_mappings_; }
  [[nodiscard]] Status reserve(std::size_t bytes, void** address) override;
  [[nodiscard]] Status unreserve(void* address, std::size_t bytes) override;
  [[nodiscard]] Status create(std::size_t bytes, Handle* handle) override;
  [[nodiscard]] Status destroy(Handle handle, std::size_t bytes) override;
  [[nodiscard]] Status map(void* address, std::size_t bytes, Handle handle) override;
  [[nodiscard]] Status unmap(void* address, std::size_t bytes) override;
  [[nodiscard]] Status set_access(void* address, std::size_t bytes) override;
  [[nodiscard]] Status scrub(void* address, std::size_t bytes, std::uint8_t byte = 0) override;
  [[nodiscard]] Status wait_for_scrubs() override;
  [[nodiscard]] Status zero_on(Stream stream, void* address, std::size_t bytes) override;
  [[nodiscard]] Status reads_as(std::uint8_t byte, const void* address, std::size_t bytes,
                                bool* all) override;
  [[nodiscard]] bool fresh_memory_is_zero() const noexcept override;
  [[nodiscard]] Status event_passed(Event event, bool* passed) override;
  [[nodiscard]] Status memory_info(MemoryInfo* info) override;
  [[nodiscard]] std::string last_error() const override { return error_.text(); }

 private:
  // Mappings side by side, none of them accessible yet.
  struct Run {
    void* address = nullptr;
    std::size_t bytes = 0;
  };

  // The first run in [first, end); empty when all is accessible.
  [[nodiscard]] Run next_run(std::uintptr_t first, std::uintptr_t end) const;
  // Until the first error. Returns 0 or an errno.
  [[nodiscard]] int for_each_run(std::uintptr_t first, std::uintptr_t end,
                                 int (*call)(void*, std::size_t)) const;
  // All of a range's runs or none. Returns 0 or an errno.
  [[nodiscard]] int open_runs(std::uintptr_t first, std::uintptr_t end) const;
  // Bytes of handles that have no memory yet.
  [[nodiscard]] std::size_t promised_bytes() const noexcept {
    return map_.created_bytes() - map_.accessible_bytes();
  }
  [[nodiscard]] Status check_ready(const char* call) const;
  [[nodiscard]] Status failed(const char* call, int error, std::size_t bytes) const;

  const LastError error_{};
  MemoryMap map_;
  Headroom headroom_;
  std::size_t budget_;
  std::size_t max_mappings_ = 0;
  std::uint64_t last_handle_ = 0;
  // The process that probed; 0 before that.
  pid_t owner_ = 0;
};

}  // namespace kvcached
