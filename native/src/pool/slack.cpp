#include "kvcached/slack.hpp"

#include <algorithm>

namespace kvcached {

SlackPolicy::SlackPolicy(SlackBounds bounds) noexcept : bounds_(bounds) {
  bounds_.most = std::max(bounds_.least, bounds_.most);
}

void SlackPolicy::note_growth(std::uint32_t extents) noexcept {
  const std::uint32_t gone = growth_[next_];
  growth_[next_] = extents;
  next_ = (next_ + 1) % kSteps;
  if (extents >= peak_) {
    peak_ = extents;
  } else if (gone == peak_) {
    peak_ = *std::max_element(growth_.begin(), growth_.end());
  }
}

void SlackPolicy::note_busy(std::uint32_t extents, std::uint64_t now_ns) noexcept {
  busy_.note(extents, now_ns);
}

void SlackPolicy::reset() noexcept {
  busy_.clear();
  growth_.fill(0);
  peak_ = 0;
}

std::uint32_t SlackPolicy::target() const noexcept {
  return std::clamp(2 * peak_, bounds_.least, bounds_.most);
}

std::uint32_t SlackPolicy::lately_busy(std::uint32_t busy, std::uint64_t now_ns) const noexcept {
  const std::uint64_t peak = busy_.peak(now_ns);
  return peak > busy ? static_cast<std::uint32_t>(peak) - busy : 0;
}

}  // namespace kvcached
