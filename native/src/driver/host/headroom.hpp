#pragma once

#include <chrono>
#include <cstddef>

#include "machine_memory.hpp"

namespace kvcached {

/// Answers whether the machine can spare some bytes, without asking the kernel each time.
///
/// It keeps a sample of the available memory and counts down from it. A sample serves for 10 ms
/// or until 64 MiB were taken on it: zeroing pages takes about 0.2 ms a MiB, so at full speed
/// both come at about the same rate, and the 10 to 50 us that a sample costs stay under 1%.
class Headroom {
 public:
  static constexpr std::chrono::milliseconds kSampleAge{10};
  static constexpr std::size_t kSampleBytes = std::size_t{64} << 20;

  explicit Headroom(MachineMemory memory) : memory_(std::move(memory)) {}

  /// Learns the machine's size; returns it in bytes.
  std::size_t open();

  /// Whether `bytes` can be taken and the reserve stays free; counts them as taken if so.
  /// `promised`: bytes that were taken before and that the kernel does not know of yet, because
  /// nothing of them is resident. They come off every sample.
  [[nodiscard]] bool take(std::size_t bytes, std::size_t promised = 0);

  /// Bytes that were taken are free again.
  void give_back(std::size_t bytes) noexcept { spare_ += bytes; }

  /// A new sample: bytes that take() would grant now.
  std::size_t sample(std::size_t promised = 0);

  /// Bytes as the last sample and what was taken since leave them.
  [[nodiscard]] std::size_t spare() const noexcept { return spare_; }

  /// Bytes kept free for everything else on the machine: a 64th of it, 16 MiB to 512 MiB. Inside
  /// it the kernel's answer to an allocation may be the out-of-memory killer.
  [[nodiscard]] std::size_t reserve() const noexcept { return reserve_; }

 private:
  MachineMemory memory_;
  std::size_t reserve_ = 0;
  std::size_t spare_ = 0;
  std::size_t taken_ = 0;
  std::chrono::steady_clock::time_point sampled_{};
};

}  // namespace kvcached
