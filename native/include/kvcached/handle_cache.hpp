#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvcached/driver.hpp"

namespace kvcached {

/// Physical handles kept for a moment after release, because on CUDA creating and destroying one
/// is a third of a commit-and-release cycle. What is kept still counts as held.
class HandleCache {
 public:
  using Clock = std::chrono::steady_clock;

  HandleCache(Driver& driver, std::uint64_t capacity_bytes)
      : driver_(driver), capacity_bytes_(capacity_bytes) {}

  /// A kept handle of exactly this size. It holds what its last user wrote.
  [[nodiscard]] bool take(std::uint64_t bytes, Handle* handle);

  /// Keeps an unmapped handle, or destroys it (and older ones) where there is no room.
  void put(Handle handle, std::uint64_t bytes);

  /// Destroys an unmapped handle; one that the driver will not destroy is kept and counted.
  void discard(Handle handle, std::uint64_t bytes);

  /// Destroys what was kept before `older_than`, and tries again what would not go.
  void trim(Clock::time_point older_than);

  [[nodiscard]] std::uint64_t held_bytes() const noexcept { return held_bytes_; }
  [[nodiscard]] std::size_t size() const noexcept { return kept_.size(); }

 private:
  struct Kept {
    Handle handle;
    std::uint64_t bytes = 0;
    Clock::time_point since;
  };

  Driver& driver_;
  std::uint64_t capacity_bytes_;
  std::uint64_t held_bytes_ = 0;
  std::vector<Kept> kept_;  // oldest first
};

}  // namespace kvcached
