#include "memory_map.hpp"

#include <cinttypes>
#include <limits>
#include <new>

namespace kvcached {
namespace {

std::uintptr_t number(const void* address) noexcept {
  return reinterpret_cast<std::uintptr_t>(address);
}

// Inserts without throwing: std::map allocates a node first and changes nothing if it cannot.
template <typename Map, typename Key, typename Value>
bool insert(Map& map, Key key, const Value& value) noexcept {
  try {
    map.emplace(key, value);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

constexpr const char* kNoNode = "%s: no memory for the driver's own account of %zu bytes";

}  // namespace

Status MemoryMap::check_size(const char* call, std::size_t bytes) const noexcept {
  if (bytes == 0 || bytes % granularity_ != 0) {
    return error_.set(Status::invalid_argument, "%s: %zu bytes is no positive multiple of %zu",
                      call, bytes, granularity_);
  }
  return Status::ok;
}

Status MemoryMap::check_range(const char* call, const void* address,
                              std::size_t bytes) const noexcept {
  if (const Status status = check_size(call, bytes); status != Status::ok) return status;
  const std::uintptr_t first = number(address);
  if (first % granularity_ != 0 || first > std::numeric_limits<std::uintptr_t>::max() - bytes) {
    return error_.set(Status::invalid_argument, "%s: address %p is no multiple of %zu", call,
                      address, granularity_);
  }
  return Status::ok;
}

bool MemoryMap::reserved(std::uintptr_t first, std::size_t bytes) const noexcept {
  auto after = reservations_.upper_bound(first);
  if (after == reservations_.begin()) return false;
  const auto& [start, size] = *--after;
  return first - start < size && bytes <= size - (first - start);
}

bool MemoryMap::mapped_within(std::uintptr_t first, std::size_t bytes) const noexcept {
  // The last mapping that starts before the range's end is the only one that can reach into it.
  auto after = mappings_.lower_bound(first + bytes);
  if (after == mappings_.begin()) return false;
  const auto& [start, mapping] = *--after;
  return start + mapping.bytes > first;
}

Status MemoryMap::add_reservation(const void* address, std::size_t bytes) noexcept {
  if (!insert(reservations_, number(address), bytes)) {
    return error_.set(Status::out_of_memory, kNoNode, "reserve", bytes);
  }
  return Status::ok;
}

Status MemoryMap::check_unreserve(const void* address, std::size_t bytes) const noexcept {
  const auto found = reservations_.find(number(address));
  if (found == reservations_.end() || found->second != bytes) {
    return error_.set(Status::invalid_argument, "unreserve: %zu bytes at %p is no reservation",
                      bytes, address);
  }
  if (mapped_within(found->first, bytes)) {
    return error_.set(Status::invalid_argument,
                      "unreserve: memory is still mapped in %zu bytes at %p", bytes, address);
  }
  return Status::ok;
}

void MemoryMap::remove_reservation(const void* address) noexcept {
  reservations_.erase(number(address));
}

bool MemoryMap::starts_reservation(const void* address) const noexcept {
  return reservations_.contains(number(address));
}

Status MemoryMap::add_handle(Handle handle, std::size_t bytes) noexcept {
  if (!insert(allocations_, handle.value, Allocation{.bytes = bytes})) {
    return error_.set(Status::out_of_memory, kNoNode, "create", bytes);
  }
  created_bytes_ += bytes;
  return Status::ok;
}

Status MemoryMap::check_destroy(Handle handle, std::size_t bytes) const noexcept {
  const auto found = allocations_.find(handle.value);
  if (found == allocations_.end()) {
    return error_.set(Status::invalid_argument, "destroy: no handle %" PRIu64, handle.value);
  }
  if (found->second.bytes != bytes) {
    return error_.set(Status::invalid_argument,
                      "destroy: handle %" PRIu64 " has %zu bytes, not %zu", handle.value,
                      found->second.bytes, bytes);
  }
  if (found->second.mapped) {
    return error_.set(Status::invalid_argument, "destroy: handle %" PRIu64 " is still mapped",
                      handle.value);
  }
  return Status::ok;
}

void MemoryMap::remove_handle(Handle handle) noexcept {
  const auto found = allocations_.find(handle.value);
  created_bytes_ -= found->second.bytes;
  allocations_.erase(found);
}

Status MemoryMap::add_mapping(const void* address, std::size_t bytes, Handle handle) noexcept {
  if (const Status status = check_range("map", address, bytes); status != Status::ok) return status;
  const std::uintptr_t first = number(address);
  const auto found = allocations_.find(handle.value);
  if (found == allocations_.end() || found->second.bytes != bytes) {
    return error_.set(Status::invalid_argument, "map: no handle %" PRIu64 " of %zu bytes",
                      handle.value, bytes);
  }
  if (found->second.mapped) {
    return error_.set(Status::invalid_argument, "map: handle %" PRIu64 " is mapped elsewhere",
                      handle.value);
  }
  if (!reserved(first, bytes)) {
    return error_.set(Status::invalid_argument, "map: %zu bytes at %p lie in no reservation", bytes,
                      address);
  }
  if (mapped_within(first, bytes)) {
    return error_.set(Status::invalid_argument, "map: memory is already mapped in %zu bytes at %p",
                      bytes, address);
  }
  if (!insert(mappings_, first, Mapping{.bytes = bytes, .handle = handle.value})) {
    return error_.set(Status::out_of_memory, kNoNode, "map", bytes);
  }
  found->second.mapped = true;
  return Status::ok;
}

Status MemoryMap::check_unmap(const void* address, std::size_t bytes) const noexcept {
  const auto found = mappings_.find(number(address));
  if (found == mappings_.end() || found->second.bytes != bytes) {
    return error_.set(Status::invalid_argument, "unmap: %zu bytes at %p is no whole mapping", bytes,
                      address);
  }
  return Status::ok;
}

void MemoryMap::remove_mapping(const void* address) noexcept {
  const auto found = mappings_.find(number(address));
  allocations_.find(found->second.handle)->second.mapped = false;
  if (found->second.accessible) accessible_bytes_ -= found->second.bytes;
  mappings_.erase(found);
}

Status MemoryMap::check_set_access(const void* address, std::size_t bytes) const noexcept {
  std::size_t covered = 0;
  for (auto at = mappings_.find(number(address)); covered < bytes && at != mappings_.end(); ++at) {
    if (at->first != number(address) + covered) break;
    covered += at->second.bytes;
  }
  if (bytes == 0 || covered != bytes) {
    return error_.set(Status::invalid_argument,
                      "set_access: %zu bytes at %p are no whole mappings side by side", bytes,
                      address);
  }
  return Status::ok;
}

void MemoryMap::allow_access(const void* address, std::size_t bytes) noexcept {
  const std::uintptr_t end = number(address) + bytes;
  for (auto at = mappings_.find(number(address)); at != mappings_.end() && at->first < end; ++at) {
    if (!at->second.accessible) accessible_bytes_ += at->second.bytes;
    at->second.accessible = true;
  }
}

Status MemoryMap::check_touch(const char* call, const void* address,
                              std::size_t bytes) const noexcept {
  if (bytes == 0 || number(address) > std::numeric_limits<std::uintptr_t>::max() - bytes) {
    return error_.set(Status::invalid_argument, "%s: %zu bytes at %p are no range", call, bytes,
                      address);
  }
  const std::uintptr_t end = number(address) + bytes;
  std::uintptr_t next = number(address);
  auto at = mappings_.upper_bound(next);
  if (at != mappings_.begin()) --at;
  for (; next < end && at != mappings_.end(); ++at) {
    const auto& [start, mapping] = *at;
    if (next < start || next - start >= mapping.bytes || !mapping.accessible) break;
    next = start + mapping.bytes;
  }
  if (next < end) {
    return error_.set(Status::invalid_argument, "%s: %zu bytes at %p are not all accessible", call,
                      bytes, address);
  }
  return Status::ok;
}

}  // namespace kvcached
