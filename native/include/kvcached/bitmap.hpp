#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvcached {

/// A set of numbers below a fixed size that finds its lowest and highest member in a few
/// instructions: each level holds one bit for every word of the level below it that is not zero.
class Bitmap {
 public:
  static constexpr std::uint32_t kNone = 0xffffffffU;

  explicit Bitmap(std::uint32_t size);

  [[nodiscard]] bool test(std::uint32_t index) const noexcept {
    return (levels_[0][index >> 6] >> (index & 63) & 1) != 0;
  }
  /// Adds a number; adding a member again changes nothing.
  void set(std::uint32_t index) noexcept;
  /// Removes a number; removing what is no member changes nothing.
  void clear(std::uint32_t index) noexcept;

  /// The lowest member, or kNone.
  [[nodiscard]] std::uint32_t first() const noexcept;
  /// The highest member, or kNone.
  [[nodiscard]] std::uint32_t last() const noexcept;
  /// The lowest member above `index`, or kNone.
  [[nodiscard]] std::uint32_t next(std::uint32_t index) const noexcept;

  [[nodiscard]] std::uint32_t count() const noexcept { return count_; }

 private:
  std::vector<std::vector<std::uint64_t>> levels_;  // [0] holds the members
  std::uint32_t count_ = 0;
};

}  // namespace kvcached
