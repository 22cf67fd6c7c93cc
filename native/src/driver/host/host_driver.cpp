#include "host_driver.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "address_space.hpp"

namespace kvcached {
namespace {

// A page would do. 64 KiB is also Arm64's largest page and keeps extents small: a 30-layer model in
// a per-layer layout holds 1.9 MiB an extent, where CUDA's 2 MiB would make it 60 MiB. Smaller
// still, and vm.max_map_count (65,530) would be met sooner: a mapping that merges with no other
// costs two, itself and the reserved gap behind it, so 2 GiB at worst.
constexpr std::size_t kGranularity = std::size_t{64} << 10;

std::uintptr_t number(const void* address) noexcept {
  return reinterpret_cast<std::uintptr_t>(address);
}

std::size_t read_max_map_count() {
  std::ifstream file("/proc/sys/vm/max_map_count");
  std::size_t count = 0;
  return file >> count ? count : 0;
}

}  // namespace

HostDriver::HostDriver(std::size_t budget_bytes, MachineMemory memory)
    : map_(error_), headroom_(std::move(memory)), budget_(budget_bytes) {
  map_.set_granularity(kGranularity);
}

HostDriver::~HostDriver() {
  // In a forked child the addresses may be somebody else's by now.
  if (owner_ != ::getpid()) return;
  for (const auto& [address, bytes] : map_.reservations()) {
    (void)release_address_space(reinterpret_cast<void*>(address), bytes);
  }
}

Status HostDriver::failed(const char* call, int error, std::size_t bytes) const {
  const bool full = error == ENOMEM || error == EAGAIN || error == EFAULT;
  return error_.set(full ? Status::out_of_memory : Status::driver_error,
                    "%s: %s (errno %d) for %zu bytes; %zu mappings, vm.max_map_count %zu", call,
                    std::strerror(error), error, bytes, map_.mappings().size(), max_mappings_);
}

Status HostDriver::check_ready(const char* call) const {
  if (owner_ == ::getpid()) return Status::ok;
  if (owner_ == 0) return error_.set(Status::invalid_argument, "%s: probe() was not called", call);
  return error_.set(Status::unsupported, "%s: the driver belongs to the process that forked us",
                    call);
}

Status HostDriver::probe() {
  if (owner_ != 0) return check_ready("probe");
  const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  if (kGranularity % page != 0) {
    return error_.set(Status::unsupported, "probe: pages of %zu bytes do not divide %zu", page,
                      kGranularity);
  }
  const std::size_t total = headroom_.open();
  if (total == 0 && budget_ == 0) {
    return error_.set(Status::unsupported, "probe: /proc/meminfo is unreadable; set a budget");
  }
  if (budget_ == 0) budget_ = total;
  max_mappings_ = read_max_map_count();
  owner_ = ::getpid();
  return Status::ok;
}

std::size_t HostDriver::granularity() const noexcept { return kGranularity; }

Status HostDriver::reserve(std::size_t bytes, void** address) {
  if (const Status status = check_ready("reserve"); status != Status::ok) return status;
  if (const Status status = map_.check_size("reserve", bytes); status != Status::ok) return status;
  void* start = nullptr;
  if (const int error = reserve_address_space(bytes, &start); error != 0) {
    return failed("reserve", error, bytes);
  }
  if (const Status status = map_.add_reservation(start, bytes); status != Status::ok) {
    (void)release_address_space(start, bytes);
    return status;
  }
  *address = start;
  return Status::ok;
}

Status HostDriver::unreserve(void* address, std::size_t bytes) {
  if (const Status status = check_ready("unreserve"); status != Status::ok) return status;
  if (const Status status = map_.check_unreserve(address, bytes); status != Status::ok) {
    return status;
  }
  if (const int error = release_address_space(address, bytes); error != 0) {
    return failed("unreserve", error, bytes);
  }
  map_.remove_reservation(address);
  return Status::ok;
}

Status HostDriver::create(std::size_t bytes, Handle* handle) {
  if (const Status status = check_ready("create"); status != Status::ok) return status;
  if (const Status status = map_.check_size("create", bytes); status != Status::ok) return status;
  const std::size_t created = map_.created_bytes();
  if (created > budget_ || bytes > budget_ - created) {
    return error_.set(Status::out_of_memory, "create: %zu bytes over %zu of a budget of %zu", bytes,
                      created, budget_);
  }
  if (!headroom_.take(bytes, promised_bytes())) {
    return error_.set(Status::out_of_memory,
                      "create: the machine can spare %zu bytes, not %zu (%zu stay free for others)",
                      headroom_.spare(), bytes, headroom_.reserve());
  }
  // A number of its own for every handle: a second destroy never hits a newer handle.
  const Handle made{last_handle_ + 1};
  if (const Status status = map_.add_handle(made, bytes); status != Status::ok) {
    headroom_.give_back(bytes);
    return status;
  }
  last_handle_ = made.value;
  *handle = made;
  return Status::ok;
}

Status HostDriver::destroy(Handle handle, std::size_t bytes) {
  if (const Status status = check_ready("destroy"); status != Status::ok) return status;
  if (const Status status = map_.check_destroy(handle, bytes); status != Status::ok) return status;
  map_.remove_handle(handle);
  headroom_.give_back(bytes);
  return Status::ok;
}

Status HostDriver::map(void* address, std::size_t bytes, Handle handle) {
  if (const Status status = check_ready("map"); status != Status::ok) return status;
  return map_.add_mapping(address, bytes, handle);
}

Status HostDriver::unmap(void* address, std::size_t bytes) {
  if (const Status status = check_ready("unmap"); status != Status::ok) return status;
  if (const Status status = map_.check_unmap(address, bytes); status != Status::ok) return status;
  if (map_.mappings().at(number(address)).accessible) {
    if (const int error = conceal(address, bytes); error != 0) return failed("unmap", error, bytes);
  }
  map_.remove_mapping(address);
  return Status::ok;
}

Status HostDriver::set_access(void* address, std::size_t bytes) {
  if (const Status status = check_ready("set_access"); status != Status::ok) return status;
  if (const Status status = map_.check_set_access(address, bytes); status != Status::ok) {
    return status;
  }
  const std::uintptr_t first = number(address);
  if (const int error = open_runs(first, first + bytes); error != 0) {
    return failed("set_access", error, bytes);
  }
  map_.allow_access(address, bytes);
  return Status::ok;
}

HostDriver::Run HostDriver::next_run(std::uintptr_t first, std::uintptr_t end) const {
  const auto& mappings = map_.mappings();
  auto at = mappings.lower_bound(first);
  while (at != mappings.end() && at->first < end && at->second.accessible) ++at;
  Run run;
  for (; at != mappings.end() && at->first < end && !at->second.accessible; ++at) {
    if (run.bytes == 0) run.address = reinterpret_cast<void*>(at->first);
    run.bytes += at->second.bytes;
  }
  return run;
}

int HostDriver::for_each_run(std::uintptr_t first, std::uintptr_t end,
                             int (*call)(void*, std::size_t)) const {
  int error = 0;
  for (Run run = next_run(first, end); run.bytes != 0 && error == 0;) {
    error = call(run.address, run.bytes);
    run = next_run(number(run.address) + run.bytes, end);
  }
  return error;
}

int HostDriver::open_runs(std::uintptr_t first, std::uintptr_t end) const {
  // The mapping limit can refuse one run alone, and then nothing has changed: where there are
  // several, each has an open neighbour within the range, and opening it needs no mapping more.
  int error = for_each_run(first, end, expose);
  if (error == 0) error = for_each_run(first, end, populate);
  // There was less memory than was promised: back to how it was. A run that never opened does not
  // mind.
  if (error != 0) (void)for_each_run(first, end, conceal);
  return error;
}

Status HostDriver::scrub(void* address, std::size_t bytes, std::uint8_t byte) {
  if (const Status status = check_ready("scrub"); status != Status::ok) return status;
  if (const Status status = map_.check_touch("scrub", address, bytes); status != Status::ok) {
    return status;
  }
  std::memset(address, byte, bytes);
  return Status::ok;
}

// scrub() itself has filled the pages.
Status HostDriver::wait_for_scrubs() { return check_ready("wait_for_scrubs"); }

// The host has one queue of work, the thread that calls.
Status HostDriver::zero_on(Stream /*stream*/, void* address, std::size_t bytes) {
  if (const Status status = check_ready("zero_on"); status != Status::ok) return status;
  std::memset(address, 0, bytes);
  return Status::ok;
}

Status HostDriver::reads_as(std::uint8_t byte, const void* address, std::size_t bytes, bool* all) {
  if (const Status status = check_ready("reads_as"); status != Status::ok) return status;
  if (const Status status = map_.check_touch("reads_as", address, bytes); status != Status::ok) {
    return status;
  }
  const auto* const first = static_cast<const std::uint8_t*>(address);
  *all = std::all_of(first, first + bytes, [byte](std::uint8_t held) { return held == byte; });
  return Status::ok;
}

// Every page is new to its address: the kernel zeroes it, and took back what was there before.
bool HostDriver::fresh_memory_is_zero() const noexcept { return true; }

// The host has no queue of work: what was called has run.
Status HostDriver::event_passed(Event /*event*/, bool* passed) {
  if (const Status status = check_ready("event_passed"); status != Status::ok) return status;
  *passed = true;
  return Status::ok;
}

Status HostDriver::memory_info(MemoryInfo* info) {
  if (const Status status = check_ready("memory_info"); status != Status::ok) return status;
  const std::size_t created = map_.created_bytes();
  info->total = budget_;
  info->free = std::min(budget_ - std::min(budget_, created), headroom_.sample(promised_bytes()));
  return Status::ok;
}

std::unique_ptr<Driver> make_host_driver(std::size_t budget_bytes) {
  return std::make_unique<HostDriver>(budget_bytes);
}

}  // namespace kvcached
