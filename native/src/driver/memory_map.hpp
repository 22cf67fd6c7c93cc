#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "kvcached/driver.hpp"
#include "last_error.hpp"

namespace kvcached {

/// One driver's account of its reservations, handles and mappings, and the rules of the Driver
/// contract over them. It makes no system call and knows nothing of how memory is mapped.
///
/// `check_*` only asks; `add_*` asks and records; `remove_*` records what was asked before and
/// cannot fail. A driver adds before its system call and removes again where that fails, or
/// checks before and removes after: either way a failed call leaves everything as it was.
/// A refusal is Status::invalid_argument (Status::out_of_memory where the account itself found
/// no memory) with its reason in LastError. Every call is O(log n).
class MemoryMap {
 public:
  struct Allocation {
    std::size_t bytes = 0;
    bool mapped = false;
    bool operator==(const Allocation&) const = default;
  };

  struct Mapping {
    std::size_t bytes = 0;
    /// Handle::value.
    std::uint64_t handle = 0;
    bool accessible = false;
    bool operator==(const Mapping&) const = default;
  };

  /// Address to bytes.
  using Reservations = std::map<std::uintptr_t, std::size_t>;
  /// Handle::value to what lies behind it.
  using Allocations = std::map<std::uint64_t, Allocation>;
  /// First address to what is mapped there.
  using Mappings = std::map<std::uintptr_t, Mapping>;

  explicit MemoryMap(const LastError& error) : error_(error) {}

  /// The unit of every size and address, those of check_touch() apart. Set once, when
  /// probe() knows it.
  void set_granularity(std::size_t granularity) noexcept { granularity_ = granularity; }

  /// Whether a size can be asked for: a positive multiple of the granularity.
  [[nodiscard]] Status check_size(const char* call, std::size_t bytes) const noexcept;

  [[nodiscard]] Status add_reservation(const void* address, std::size_t bytes) noexcept;
  [[nodiscard]] Status check_unreserve(const void* address, std::size_t bytes) const noexcept;
  void remove_reservation(const void* address) noexcept;
  [[nodiscard]] bool starts_reservation(const void* address) const noexcept;

  [[nodiscard]] Status add_handle(Handle handle, std::size_t bytes) noexcept;
  [[nodiscard]] Status check_destroy(Handle handle, std::size_t bytes) const noexcept;
  void remove_handle(Handle handle) noexcept;

  [[nodiscard]] Status add_mapping(const void* address, std::size_t bytes, Handle handle) noexcept;
  [[nodiscard]] Status check_unmap(const void* address, std::size_t bytes) const noexcept;
  void remove_mapping(const void* address) noexcept;

  /// Whether a range is made of one or more whole mappings side by side.
  [[nodiscard]] Status check_set_access(const void* address, std::size_t bytes) const noexcept;
  /// Records access for the whole mappings of a range that check_set_access accepted.
  void allow_access(const void* address, std::size_t bytes) noexcept;

  /// Whether every byte of a range, of any size and alignment, is mapped and accessible.
  [[nodiscard]] Status check_touch(const char* call, const void* address,
                                   std::size_t bytes) const noexcept;

  [[nodiscard]] const Reservations& reservations() const noexcept { return reservations_; }
  [[nodiscard]] const Allocations& allocations() const noexcept { return allocations_; }
  [[nodiscard]] const Mappings& mappings() const noexcept { return mappings_; }
  /// Bytes of all handles that exist.
  [[nodiscard]] std::size_t created_bytes() const noexcept { return created_bytes_; }
  /// Bytes of all mappings that set_access() has opened.
  [[nodiscard]] std::size_t accessible_bytes() const noexcept { return accessible_bytes_; }

 private:
  [[nodiscard]] Status check_range(const char* call, const void* address,
                                   std::size_t bytes) const noexcept;
  [[nodiscard]] bool reserved(std::uintptr_t first, std::size_t bytes) const noexcept;
  [[nodiscard]] bool mapped_within(std::uintptr_t first, std::size_t bytes) const noexcept;

  const LastError& error_;
  std::size_t granularity_ = 1;
  Reservations reservations_;
  Allocations allocations_;
  Mappings mappings_;
  std::size_t created_bytes_ = 0;
  std::size_t accessible_bytes_ = 0;
};

}  // namespace kvcached
