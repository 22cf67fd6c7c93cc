#include "kvcached/handle_cache.hpp"

#include <algorithm>

namespace kvcached {

bool HandleCache::take(std::uint64_t bytes, Handle* handle) {
  const auto found = std::find_if(kept_.rbegin(), kept_.rend(),
                                  [bytes](const Kept& kept) { return kept.bytes == bytes; });
  if (found == kept_.rend()) return false;
  *handle = found->handle;
  held_bytes_ -= bytes;
  kept_.erase(std::next(found).base());
  return true;
}

void HandleCache::discard(Handle handle, std::uint64_t bytes) {
  if (driver_.destroy(handle, bytes) == Status::ok) return;
  kept_.push_back({handle, bytes, Clock::time_point::min()});
  held_bytes_ += bytes;
}

void HandleCache::put(Handle handle, std::uint64_t bytes) {
  if (bytes > capacity_bytes_) return discard(handle, bytes);
  kept_.push_back({handle, bytes, Clock::now()});
  held_bytes_ += bytes;
  // Oldest first, until what is kept fits. One that the driver will not destroy stays counted.
  auto keep = kept_.begin();
  while (held_bytes_ > capacity_bytes_ && keep != kept_.end()) {
    if (driver_.destroy(keep->handle, keep->bytes) == Status::ok) {
      held_bytes_ -= keep->bytes;
      keep = kept_.erase(keep);
    } else {
      ++keep;
    }
  }
}

void HandleCache::trim(Clock::time_point older_than) {
  std::erase_if(kept_, [&](const Kept& kept) {
    if (kept.since > older_than) return false;
    if (driver_.destroy(kept.handle, kept.bytes) != Status::ok) return false;
    held_bytes_ -= kept.bytes;
    return true;
  });
}

}  // namespace kvcached
