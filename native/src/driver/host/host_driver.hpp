#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../last_error.hpp"
#include "../memory_map.hpp"
#include "headroom.hpp"
#include "kvcached/driver.hpp"
#include "machine_memory.hpp"
#include "memfd.hpp"
#include "offset_allocator.hpp"

namespace kvcached {

/// Memory of this machine: ranges of one anonymous file, mapped into reserved address space.
///
/// In a forked child neither the address space nor the memory exists; every call there answers
/// Status::unsupported, and destroying the object does nothing.
class HostDriver final : public Driver {
 public:
  /// `budget_bytes` as in make_host_driver; `memory` is for tests.
  explicit HostDriver(std::size_t budget_bytes, MachineMemory memory = MachineMemory());
  /// Unmaps and returns to the kernel whatever the caller left.
  ~HostDriver() override;

  [[nodiscard]] const char* name() const noexcept override { return "host"; }
  [[nodiscard]] Status probe() override;
  [[nodiscard]] std::size_t granularity() const noexcept override;
  // The kernel's work is per page, so a larger handle saves nothing.
  [[nodiscard]] std::size_t largest_useful_handle() const noexcept override {
    return granularity();
  }
  [[nodiscard]] std::size_t max_mappings() const noexcept override { return max_mappings_; }
  [[nodiscard]] Status reserve(std::size_t bytes, void** address) override;
  [[nodiscard]] Status unreserve(void* address, std::size_t bytes) override;
  [[nodiscard]] Status create(std::size_t bytes, Handle* handle) override;
  [[nodiscard]] Status destroy(Handle handle, std::size_t bytes) override;
  [[nodiscard]] Status map(void* address, std::size_t bytes, Handle handle) override;
  [[nodiscard]] Status unmap(void* address, std::size_t bytes) override;
  [[nodiscard]] Status set_access(void* address, std::size_t bytes) override;
  [[nodiscard]] Status scrub(void* address, std::size_t bytes) override;
  [[nodiscard]] bool fresh_memory_is_zero() const noexcept override;
  [[nodiscard]] Status event_passed(Event event, bool* passed) override;
  [[nodiscard]] Status memory_info(MemoryInfo* info) override;
  [[nodiscard]] std::string last_error() const override { return error_.text(); }

 private:
  // Mappings side by side in the address space and in the file, none of them accessible yet.
  struct Run {
    void* address = nullptr;
    std::size_t bytes = 0;
    std::uint64_t offset = 0;
  };

  // The first run in [first, end); empty when all is accessible.
  [[nodiscard]] Run next_run(std::uintptr_t first, std::uintptr_t end) const;
  [[nodiscard]] int expose_runs(std::uintptr_t first, std::uintptr_t end);
  [[nodiscard]] Status check_ready(const char* call) const;
  [[nodiscard]] Status failed(const char* call, int error, std::size_t bytes) const;

  const LastError error_{};
  MemoryMap map_;
  Memfd file_;
  OffsetAllocator offsets_{Memfd::kFileBytes};
  Headroom headroom_;
  std::size_t budget_;
  std::size_t max_mappings_ = 0;
  std::uint64_t last_handle_ = 0;
  bool probed_ = false;
};

}  // namespace kvcached
