#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "../last_error.hpp"
#include "../memory_map.hpp"
#include "byte_ranges.hpp"
#include "kvcached/sim_driver.hpp"

namespace kvcached {

/// The bytes of one handle that hold a value, by value.
using KnownBytes = std::map<std::uint8_t, ByteRanges>;

/// Makes a part's value unknown. A value that nothing holds any more is no entry, so that equal
/// contents are equal maps.
void forget(KnownBytes& known, std::size_t begin, std::size_t end);

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

  /// Calls `use(known bytes of a handle, begin, end)` for each part of an accessible range, in the
  /// handle's own offsets.
  template <typename Use>
  void for_each_part(const void* address, std::size_t bytes, Use use) {
    const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(address);
    const std::uintptr_t last = first + bytes;
    auto at = map.mappings().upper_bound(first);
    if (at != map.mappings().begin()) --at;
    for (; at != map.mappings().end() && at->first < last; ++at) {
      const std::uintptr_t begin = std::max(first, at->first);
      const std::uintptr_t end = std::min(last, at->first + at->second.bytes);
      if (begin < end) use(known[at->second.handle], begin - at->first, end - at->first);
    }
  }

  /// Whether every byte of an accessible range is known to be `byte`.
  [[nodiscard]] bool is_known_as(std::uint8_t byte, const void* address, std::size_t bytes);

  /// Whether a range is accessible and nothing in it is being scrubbed or to be zeroed; or the
  /// contract is broken.
  [[nodiscard]] Status check_settled(const char* call, const void* address, std::size_t bytes);

  /// Whether a range is accessible and nothing in it is being scrubbed; or the contract is broken.
  [[nodiscard]] Status check_not_scrubbed(const char* call, const void* address, std::size_t bytes);

  /// Whether no stream is to zero any of a range; or the contract is broken.
  [[nodiscard]] Status check_not_queued(const char* call, const void* address, std::size_t bytes);

  /// Every one of these fills has happened.
  void finish(std::vector<Snapshot::Scrub>& fills);
  void finish_scrubs() { finish(scrubs); }

  /// Counts a refusal of the caller's arguments as a violation; returns its argument.
  Status judge(Status status);

  [[nodiscard]] static bool meets(const std::vector<Snapshot::Scrub>& fills, const void* address,
                                  std::size_t bytes);

  const Options options;
  const LastError error{};
  mutable std::mutex mutex;
  MemoryMap map{error};
  // The bytes of each handle whose value is known, counted from its first.
  std::map<std::uint64_t, KnownBytes> known;
  // Until waited for.
  std::vector<Snapshot::Scrub> scrubs;
  // Until run.
  std::vector<Snapshot::Scrub> queued_zeroes;
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
