#include "headroom.hpp"

#include <algorithm>

namespace kvcached {

std::size_t Headroom::open() {
  const std::size_t total = memory_.total();
  reserve_ = std::clamp(total / 64, std::size_t{16} << 20, std::size_t{512} << 20);
  sample();
  return total;
}

std::size_t Headroom::sample(std::size_t promised) {
  const std::size_t available = memory_.available();
  const std::size_t spoken_for = reserve_ + promised;
  spare_ = available > spoken_for ? available - spoken_for : 0;
  taken_ = 0;
  sampled_ = std::chrono::steady_clock::now();
  return spare_;
}

bool Headroom::take(std::size_t bytes, std::size_t promised) {
  // Reading the steady clock is no system call (vDSO).
  if (taken_ + bytes > kSampleBytes || std::chrono::steady_clock::now() - sampled_ > kSampleAge) {
    sample(promised);
  }
  if (bytes > spare_) return false;
  spare_ -= bytes;
  taken_ += bytes;
  return true;
}

}  // namespace kvcached
