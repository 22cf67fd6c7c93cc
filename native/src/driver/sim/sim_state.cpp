#include "sim_state.hpp"

#include <algorithm>

namespace kvcached {
namespace {

constexpr std::array<const char*, SimDriver::kCalls> kNames{
    "probe",   "reserve",  "unreserve",    "create",      "destroy",
    "map",     "unmap",    "set_access",   "scrub",       "wait_for_scrubs",
    "zero_on", "reads_as", "event_passed", "memory_info",
};

// Outside what 57-bit address spaces can hold on any side: a use as a pointer faults for sure.
constexpr std::uintptr_t kFirstAddress = std::uintptr_t{1} << 60;

}  // namespace

void forget(KnownBytes& known, std::size_t begin, std::size_t end) {
  for (auto& [byte, ranges] : known) ranges.remove(begin, end);
  std::erase_if(known, [](const auto& entry) { return entry.second.ranges().empty(); });
}

SimDriver::State::State(const Options& given)
    : options(given), capacity(given.capacity_bytes), next_address(kFirstAddress) {
  map.set_granularity(options.granularity);
}

Status SimDriver::State::begin(Call call, std::size_t bytes) {
  const auto index = static_cast<std::size_t>(call);
  ++counts[index];
  ++total_calls;
  const Latency& latency = latencies[index];
  clock_ns += latency.base_ns + latency.per_mib_ns * bytes / (std::size_t{1} << 20);
  Status status = Status::ok;
  for (Failure& failure : failures) {
    if (failure.call && *failure.call != call) continue;
    if (--failure.calls_left == 0 && status == Status::ok) status = failure.status;
  }
  std::erase_if(failures, [](const Failure& failure) { return failure.calls_left == 0; });
  if (status != Status::ok) {
    return error.set(status, "%s: scripted to fail: %s", kNames[index], to_string(status));
  }
  if (call == Call::probe) {
    probed = true;
  } else if (!probed) {
    return judge(error.set(Status::invalid_argument, "%s: probe() was not called", kNames[index]));
  }
  return Status::ok;
}

bool SimDriver::State::is_known_as(std::uint8_t byte, const void* address, std::size_t bytes) {
  bool all = true;
  for_each_part(address, bytes, [&](KnownBytes& held, std::size_t begin, std::size_t end) {
    const auto found = held.find(byte);
    all = all && found != held.end() && found->second.contains(begin, end);
  });
  return all;
}

Status SimDriver::State::check_settled(const char* call, const void* address, std::size_t bytes) {
  const Status status = check_not_scrubbed(call, address, bytes);
  return status == Status::ok ? check_not_queued(call, address, bytes) : status;
}

Status SimDriver::State::check_not_scrubbed(const char* call, const void* address,
                                            std::size_t bytes) {
  if (const Status status = map.check_touch(call, address, bytes); status != Status::ok) {
    return status;
  }
  if (!meets(scrubs, address, bytes)) return Status::ok;
  return error.set(Status::invalid_argument, "%s: %zu bytes at %p are being scrubbed", call, bytes,
                   address);
}

Status SimDriver::State::check_not_queued(const char* call, const void* address,
                                          std::size_t bytes) {
  if (!meets(queued_zeroes, address, bytes)) return Status::ok;
  return error.set(Status::invalid_argument, "%s: a stream is to zero bytes of %zu at %p", call,
                   bytes, address);
}

bool SimDriver::State::meets(const std::vector<Snapshot::Scrub>& fills, const void* address,
                             std::size_t bytes) {
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(address);
  return std::any_of(fills.begin(), fills.end(), [&](const auto& fill) {
    return fill.address < first + bytes && first < fill.address + fill.bytes;
  });
}

void SimDriver::State::finish(std::vector<Snapshot::Scrub>& fills) {
  for (const Snapshot::Scrub& fill : fills) {
    for_each_part(reinterpret_cast<void*>(fill.address), fill.bytes,
                  [&](KnownBytes& held, std::size_t begin, std::size_t end) {
                    forget(held, begin, end);
                    held[fill.byte].add(begin, end);
                  });
  }
  fills.clear();
}

Status SimDriver::State::judge(Status status) {
  if (status == Status::invalid_argument) ++violations;
  return status;
}

}  // namespace kvcached
