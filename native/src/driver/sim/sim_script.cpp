// What a test says to a SimDriver and asks of it; the device's own calls are in sim_driver.cpp.

#include "sim_state.hpp"

namespace kvcached {

void SimDriver::set_capacity(std::size_t bytes) {
  const std::lock_guard lock(state_->mutex);
  state_->capacity = bytes;
}

void SimDriver::set_latency(Call call, Latency latency) {
  const std::lock_guard lock(state_->mutex);
  state_->latencies[static_cast<std::size_t>(call)] = latency;
}

void SimDriver::fail_call(std::uint64_t n, Status status) {
  const std::lock_guard lock(state_->mutex);
  if (n != 0) state_->failures.push_back({.call = {}, .calls_left = n, .status = status});
}

void SimDriver::fail_call(Call call, std::uint64_t n, Status status) {
  const std::lock_guard lock(state_->mutex);
  if (n != 0) state_->failures.push_back({.call = call, .calls_left = n, .status = status});
}

void SimDriver::clear_failures() {
  const std::lock_guard lock(state_->mutex);
  state_->failures.clear();
}

void SimDriver::advance(std::uint64_t ns) {
  const std::lock_guard lock(state_->mutex);
  state_->clock_ns += ns;
}

void SimDriver::pass(Event event) {
  const std::lock_guard lock(state_->mutex);
  state_->passed.insert(event.value);
}

void SimDriver::run_streams() {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  state.finish(state.queued_zeroes);
}

Status SimDriver::touch(const void* address, std::size_t bytes) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  const Status status = state.judge(state.check_settled("touch", address, bytes));
  if (status != Status::ok) return status;
  state.for_each_part(address, bytes, [](KnownBytes& known, std::size_t begin, std::size_t end) {
    forget(known, begin, end);
  });
  return Status::ok;
}

bool SimDriver::is_all(std::uint8_t byte, const void* address, std::size_t bytes) const {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (state.judge(state.map.check_touch("read", address, bytes)) != Status::ok) return false;
  return state.is_known_as(byte, address, bytes);
}

SimDriver::Snapshot SimDriver::snapshot() const {
  const State& state = *state_;
  const std::lock_guard lock(state.mutex);
  Snapshot copy;
  copy.reservations = state.map.reservations();
  for (const auto& [handle, allocation] : state.map.allocations()) {
    Snapshot::Allocation& copied = copy.handles[handle];
    copied.bytes = allocation.bytes;
    copied.mapped = allocation.mapped;
    if (const auto known = state.known.find(handle); known != state.known.end()) {
      for (const auto& [byte, ranges] : known->second) copied.known[byte] = ranges.ranges();
    }
  }
  for (const auto& [address, mapping] : state.map.mappings()) {
    copy.mappings[address] = {
        .bytes = mapping.bytes, .handle = mapping.handle, .accessible = mapping.accessible};
  }
  copy.scrubs = state.scrubs;
  copy.queued_zeroes = state.queued_zeroes;
  return copy;
}

std::uint64_t SimDriver::now() const {
  const std::lock_guard lock(state_->mutex);
  return state_->clock_ns;
}

std::uint64_t SimDriver::calls() const {
  const std::lock_guard lock(state_->mutex);
  return state_->total_calls;
}

std::uint64_t SimDriver::calls(Call call) const {
  const std::lock_guard lock(state_->mutex);
  return state_->counts[static_cast<std::size_t>(call)];
}

std::size_t SimDriver::created_bytes() const {
  const std::lock_guard lock(state_->mutex);
  return state_->map.created_bytes();
}

std::size_t SimDriver::peak_created_bytes() const {
  const std::lock_guard lock(state_->mutex);
  return state_->peak_created;
}

std::size_t SimDriver::mapped_bytes() const {
  const std::lock_guard lock(state_->mutex);
  std::size_t bytes = 0;
  for (const auto& [address, mapping] : state_->map.mappings()) bytes += mapping.bytes;
  return bytes;
}

std::uint64_t SimDriver::contract_violations() const {
  const std::lock_guard lock(state_->mutex);
  return state_->violations;
}

}  // namespace kvcached
