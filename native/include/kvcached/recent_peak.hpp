#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace kvcached {

/// The peak of an amount within the last second, readable by anybody at any time: each bucket is
/// {amount:32, period:32} of a quarter of a second, so that a peak is forgotten a second after it
/// passed.
struct RecentPeak {
  static constexpr std::uint64_t kPeriodNs = 250'000'000;
  static constexpr std::size_t kBuckets = 4;
  std::array<std::atomic<std::uint64_t>, kBuckets> buckets{};

  void note(std::uint64_t amount, std::uint64_t now_ns) noexcept;
  void clear() noexcept;
  [[nodiscard]] std::uint64_t peak(std::uint64_t now_ns) const noexcept;
};

/// Nanoseconds of the clock that all processes of a machine share and that never goes back.
[[nodiscard]] std::uint64_t monotonic_ns() noexcept;

}  // namespace kvcached
