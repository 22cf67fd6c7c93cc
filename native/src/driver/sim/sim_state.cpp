#include "sim_state.hpp"

#include <algorithm>

namespace kvcached {
namespace {

constexpr std::array<const char*, SimDriver::kCalls> kNames{
    "probe", "reserve",    "unreserve", "create",          "destroy",      "map",
    "unmap", "set_access", "scrub",     "wait_for_scrubs", "event_passed", "memory_info",
};

// Outside what 57-bit address spaces can hold on any side: a use as a pointer faults for sure.
constexpr std::uintptr_t kFirstAddress = std::uintptr_t{1} << 60;

}  // namespace

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

void SimDriver::State::finish_scrubs() {
  for (const auto& [address, bytes] : scrubs) {
    for_each_part(
        reinterpret_cast<void*>(address), bytes,
        [](ByteRanges& zeros, std::size_t begin, std::size_t end) { zeros.add(begin, end); });
  }
  scrubs.clear();
}

Status SimDriver::State::judge(Status status) {
  if (status == Status::invalid_argument) ++violations;
  return status;
}

}  // namespace kvcached
