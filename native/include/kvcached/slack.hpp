#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvcached {

/// Bounds of the slack, in extents.
struct SlackBounds {
  std::uint32_t least = 1;
  std::uint32_t most = 10;
};

/// How many committed extents to keep free ahead of need.
///
/// The pager answers within about one decode step, so the slack covers the largest growth of
/// two recent steps.
class SlackPolicy {
 public:
  explicit SlackPolicy(SlackBounds bounds) noexcept;

  /// Tells how many extents the last step took into use.
  void note_growth(std::uint32_t extents) noexcept;
  /// Forgets the past, as an idle engine does.
  void reset() noexcept;

  /// The extents to keep free.
  [[nodiscard]] std::uint32_t target() const noexcept;
  [[nodiscard]] const SlackBounds& bounds() const noexcept { return bounds_; }

 private:
  static constexpr std::size_t kSteps = 64;

  SlackBounds bounds_;
  std::array<std::uint32_t, kSteps> growth_{};
  std::size_t next_ = 0;
  std::uint32_t peak_ = 0;
};

}  // namespace kvcached
