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

Status SimDriver::touch(const void* address, std::size_t bytes) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (bytes == 0) return Status::ok;
  // The account knows whole granules.
  const std::size_t granule = state.options.granularity;
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(address) / granule * granule;
  const std::uintptr_t last = reinterpret_cast<std::uintptr_t>(address) + bytes - 1;
  const std::size_t span = (last / granule + 1) * granule - first;
  const Status status =
      state.judge(state.map.check_touch("touch", reinterpret_cast<const void*>(first), span));
  if (status != Status::ok) return status;
  const auto& mappings = state.map.mappings();
  for (auto at = --mappings.upper_bound(first); at != mappings.end() && at->first <= last; ++at) {
    state.zeroed.erase(at->second.handle);
  }
  return Status::ok;
}

SimDriver::Snapshot SimDriver::snapshot() const {
  const State& state = *state_;
  const std::lock_guard lock(state.mutex);
  Snapshot copy;
  copy.reservations = state.map.reservations();
  for (const auto& [handle, allocation] : state.map.allocations()) {
    copy.handles[handle] = {.bytes = allocation.bytes,
                            .mappings = allocation.mappings,
                            .zeroed = state.zeroed.contains(handle)};
  }
  for (const auto& [address, mapping] : state.map.mappings()) {
    copy.mappings[address] = {
        .bytes = mapping.bytes, .handle = mapping.handle, .accessible = mapping.accessible};
  }
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
