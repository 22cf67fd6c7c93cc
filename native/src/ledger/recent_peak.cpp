#include "kvcached/recent_peak.hpp"

#include <algorithm>
#include <ctime>

namespace kvcached {

namespace {

constexpr std::uint64_t kLow32 = 0xffffffffU;

}  // namespace

void RecentPeak::note(std::uint64_t amount, std::uint64_t now_ns) noexcept {
  const std::uint64_t period = (now_ns / kPeriodNs) & kLow32;
  auto& bucket = buckets[period % kBuckets];
  const std::uint64_t seen = bucket.load(std::memory_order_relaxed);
  const std::uint64_t peak = (seen & kLow32) == period ? std::max(seen >> 32, amount) : amount;
  const std::uint64_t bits = (peak << 32) | period;
  if (bits != seen) bucket.store(bits, std::memory_order_relaxed);
}

void RecentPeak::clear() noexcept {
  for (auto& bucket : buckets) bucket.store(0, std::memory_order_relaxed);
}

std::uint64_t RecentPeak::peak(std::uint64_t now_ns) const noexcept {
  const std::uint64_t period = (now_ns / kPeriodNs) & kLow32;
  std::uint64_t peak = 0;
  for (const auto& bucket : buckets) {
    const std::uint64_t bits = bucket.load(std::memory_order_relaxed);
    // A period that has not come yet was written by a clock that has jumped: it is no news.
    if (((period - bits) & kLow32) < kBuckets) peak = std::max(peak, bits >> 32);
  }
  return peak;
}

std::uint64_t monotonic_ns() noexcept {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U +
         static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace kvcached
