#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "../last_error.hpp"
#include "../memory_map.hpp"
#include "kvcached/sim_driver.hpp"

namespace kvcached {

/// What a SimDriver knows. The mutex guards all the rest.
struct SimDriver::State {
  // A failure that is still to come.
  struct Failure {
    std::optional<Call> call;
    std::uint64_t calls_left = 0;
    Status status = Status::ok;
  };

  explicit State(const Options& given);

  /// Accounts for a call: counts it, lets its time pass, and finds the failure scripted for it.
  [[nodiscard]] Status begin(Call call, std::size_t bytes);

  /// Counts a refusal of the caller's arguments as a violation; returns its argument.
  Status judge(Status status);

  const Options options;
  const LastError error{};
  mutable std::mutex mutex;
  MemoryMap map{error};
  // Handles that read as zero.
  std::set<std::uint64_t> zeroed;
  std::size_t capacity;
  std::array<Latency, kCalls> latencies{};
  std::array<std::uint64_t, kCalls> counts{};
  std::vector<Failure> failures;
  std::set<std::uint64_t> passed;
  std::uint64_t clock_ns = 0;
  std::uint64_t total_calls = 0;
  std::uint64_t violations = 0;
  std::size_t peak_created = 0;
  std::uint64_t last_handle = 0;
  std::uintptr_t next_address;
  bool probed = false;
};

}  // namespace kvcached
