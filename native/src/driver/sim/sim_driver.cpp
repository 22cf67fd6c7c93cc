#include "kvcached/sim_driver.hpp"

#include <algorithm>

#include "sim_state.hpp"

namespace kvcached {

SimDriver::SimDriver() : SimDriver(Options()) {}
SimDriver::SimDriver(const Options& options) : state_(std::make_unique<State>(options)) {}
SimDriver::~SimDriver() = default;

Status SimDriver::probe() {
  const std::lock_guard lock(state_->mutex);
  return state_->begin(Call::probe, 0);
}

std::size_t SimDriver::granularity() const noexcept { return state_->options.granularity; }

std::size_t SimDriver::max_mappings() const noexcept { return state_->options.max_mappings; }

Status SimDriver::reserve(std::size_t bytes, void** address) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (const Status status = state.begin(Call::reserve, bytes); status != Status::ok) return status;
  if (const Status status = state.judge(state.map.check_size("reserve", bytes));
      status != Status::ok) {
    return status;
  }
  // A gap behind every reservation, and no address twice: an overrun and a stale address are
  // both found out.
  void* const start = reinterpret_cast<void*>(state.next_address);
  const Status status = state.map.add_reservation(start, bytes);
  if (status != Status::ok) return status;
  state.next_address += bytes + state.options.granularity;
  *address = start;
  return Status::ok;
}

Status SimDriver::unreserve(void* address, std::size_t bytes) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (const Status status = state.begin(Call::unreserve, bytes); status != Status::ok) {
    return status;
  }
  const Status status = state.judge(state.map.check_unreserve(address, bytes));
  if (status == Status::ok) state.map.remove_reservation(address);
  return status;
}

Status SimDriver::create(std::size_t bytes, Handle* handle) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (const Status status = state.begin(Call::create, bytes); status != Status::ok) return status;
  if (const Status status = state.judge(state.map.check_size("create", bytes));
      status != Status::ok) {
    return status;
  }
  const std::size_t created = state.map.created_bytes();
  if (created > state.capacity || bytes > state.capacity - created) {
    return state.error.set(Status::out_of_memory, "create: %zu bytes over %zu of %zu", bytes,
                           created, state.capacity);
  }
  const Handle made{state.last_handle + 1};
  if (const Status status = state.map.add_handle(made, bytes); status != Status::ok) {
    return status;
  }
  if (state.options.fresh_memory_is_zero) state.known[made.value][0].add(0, bytes);
  state.last_handle = made.value;
  state.peak_created = std::max(state.peak_created, state.map.created_bytes());
  *handle = made;
  return Status::ok;
}

Status SimDriver::destroy(Handle handle, std::size_t bytes) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (const Status status = state.begin(Call::destroy, bytes); status != Status::ok) return status;
  const Status status = state.judge(state.map.check_destroy(handle, bytes));
  if (status != Status::ok) return status;
  state.map.remove_handle(handle);
  state.known.erase(handle.value);
  return Status::ok;
}

Status SimDriver::map(void* address, std::size_t bytes, Handle handle) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (const Status status = state.begin(Call::map, bytes); status != Status::ok) return status;
  const std::size_t bound = state.options.max_mappings;
  if (bound != 0 && state.map.mappings().size() >= bound) {
    return state.error.set(Status::out_of_memory, "map: %zu mappings are the most there can be",
                           bound);
  }
  return state.judge(state.map.add_mapping(address, bytes, handle));
}

Status SimDriver::unmap(void* address, std::size_t bytes) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (const Status status = state.begin(Call::unmap, bytes); status != Status::ok) return status;
  Status status = state.judge(state.map.check_unmap(address, bytes));
  if (status == Status::ok) status = state.judge(state.check_not_queued("unmap", address, bytes));
  if (status != Status::ok) return status;
  state.finish_scrubs();
  state.map.remove_mapping(address);
  return Status::ok;
}

Status SimDriver::set_access(void* address, std::size_t bytes) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (const Status status = state.begin(Call::set_access, bytes); status != Status::ok) {
    return status;
  }
  const Status status = state.judge(state.map.check_set_access(address, bytes));
  if (status == Status::ok) state.map.allow_access(address, bytes);
  return status;
}

Status SimDriver::scrub(void* address, std::size_t bytes, std::uint8_t byte) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (const Status status = state.begin(Call::scrub, bytes); status != Status::ok) return status;
  const Status status = state.judge(state.map.check_touch("scrub", address, bytes));
  if (status != Status::ok) return status;
  state.for_each_part(address, bytes, [](KnownBytes& known, std::size_t begin, std::size_t end) {
    forget(known, begin, end);
  });
  state.scrubs.push_back({reinterpret_cast<std::uintptr_t>(address), bytes, byte});
  return Status::ok;
}

Status SimDriver::wait_for_scrubs() {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  const Status status = state.begin(Call::wait_for_scrubs, 0);
  if (status == Status::ok) state.finish_scrubs();
  state.scrubs.clear();
  return status;
}

Status SimDriver::zero_on(Stream /*stream*/, void* address, std::size_t bytes) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (const Status status = state.begin(Call::zero_on, bytes); status != Status::ok) return status;
  // What a stream is to zero already, it zeroes twice.
  const Status status = state.judge(state.check_not_scrubbed("zero_on", address, bytes));
  if (status != Status::ok) return status;
  state.for_each_part(address, bytes, [](KnownBytes& known, std::size_t begin, std::size_t end) {
    forget(known, begin, end);
  });
  state.queued_zeroes.push_back({reinterpret_cast<std::uintptr_t>(address), bytes, 0});
  return Status::ok;
}

Status SimDriver::reads_as(std::uint8_t byte, const void* address, std::size_t bytes, bool* all) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (const Status status = state.begin(Call::reads_as, bytes); status != Status::ok) {
    return status;
  }
  const Status status = state.judge(state.check_settled("reads_as", address, bytes));
  if (status == Status::ok) *all = state.is_known_as(byte, address, bytes);
  return status;
}

bool SimDriver::fresh_memory_is_zero() const noexcept {
  return state_->options.fresh_memory_is_zero;
}

Status SimDriver::event_passed(Event event, bool* passed) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (const Status status = state.begin(Call::event_passed, 0); status != Status::ok) {
    return status;
  }
  *passed = event.value <= state.clock_ns || state.passed.contains(event.value);
  return Status::ok;
}

Status SimDriver::memory_info(MemoryInfo* info) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (const Status status = state.begin(Call::memory_info, 0); status != Status::ok) return status;
  info->total = state.capacity;
  info->free = state.capacity - std::min(state.capacity, state.map.created_bytes());
  return Status::ok;
}

std::string SimDriver::last_error() const { return state_->error.text(); }

}  // namespace kvcached
