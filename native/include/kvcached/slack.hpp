#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kvcached/recent_peak.hpp"

namespace kvcached {

/// Bounds of the slack, in extents.
struct SlackBounds {
  std::uint32_t least = 1;
  std::uint32_t most = 10;
};

/// How many committed extents to keep free.
///
/// Ahead of need: the pager answers within about one decode step, so the slack covers the largest
/// growth of two recent steps. Behind it: some of what was in use within the last second is not
/// given back yet, because a busy engine's load goes up and down by whole requests, and taking
/// memory again costs the pager a commit and a release that nobody gains by.
class SlackPolicy {
 public:
  explicit SlackPolicy(SlackBounds bounds) noexcept;

  /// Tells how many extents the last step took into use.
  void note_growth(std::uint32_t extents) noexcept;
  /// Tells how many extents are in use.
  void note_busy(std::uint32_t extents, std::uint64_t now_ns) noexcept;
  /// Forgets the past, as an idle engine does.
  void reset() noexcept;

  /// The extents to have free ahead of need.
  [[nodiscard]] std::uint32_t target() const noexcept;
  /// The free extents that were in use within the last second, while `busy` are now.
  [[nodiscard]] std::uint32_t lately_busy(std::uint32_t busy, std::uint64_t now_ns) const noexcept;
  [[nodiscard]] const SlackBounds& bounds() const noexcept { return bounds_; }

 private:
  static constexpr std::size_t kSteps = 64;

  SlackBounds bounds_;
  std::array<std::uint32_t, kSteps> growth_{};
  std::size_t next_ = 0;
  std::uint32_t peak_ = 0;
  RecentPeak busy_;
};

}  // namespace kvcached
