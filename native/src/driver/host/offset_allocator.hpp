#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>

namespace kvcached {

/// Byte ranges of a file, handed out lowest first.
///
/// Lowest first keeps the file dense, so that handles created one after another lie side by side
/// in it and, mapped side by side, merge into one mapping of the kernel's (vm.max_map_count).
class OffsetAllocator {
 public:
  /// Ranges are taken from [0, bytes).
  explicit OffsetAllocator(std::uint64_t bytes) : free_{{0, bytes}} {}

  /// The lowest offset with `bytes` free bytes behind it; nothing when there is none. Looks at
  /// each gap in turn; with handles of one size, which is the rule, the first gap fits.
  [[nodiscard]] std::optional<std::uint64_t> take(std::size_t bytes) noexcept;

  /// Gives back a range that take() returned.
  void give_back(std::uint64_t offset, std::size_t bytes) noexcept;

  /// How many separate free ranges there are.
  [[nodiscard]] std::size_t gaps() const noexcept { return free_.size(); }

 private:
  // Offset to length; ranges never touch each other.
  std::map<std::uint64_t, std::uint64_t> free_;
};

}  // namespace kvcached
