#include "offset_allocator.hpp"

#include <iterator>
#include <new>

namespace kvcached {

std::optional<std::uint64_t> OffsetAllocator::take(std::size_t bytes) noexcept {
  for (auto gap = free_.begin(); gap != free_.end(); ++gap) {
    const auto [offset, length] = *gap;
    if (length < bytes) continue;
    if (length == bytes) {
      free_.erase(gap);
    } else {
      // The node moves up in place: nothing is allocated, nothing can fail.
      auto node = free_.extract(gap);
      node.key() = offset + bytes;
      node.mapped() = length - bytes;
      free_.insert(std::move(node));
    }
    return offset;
  }
  return std::nullopt;
}

void OffsetAllocator::give_back(std::uint64_t offset, std::size_t bytes) noexcept {
  std::uint64_t length = bytes;
  auto after = free_.lower_bound(offset);
  if (after != free_.end() && offset + length == after->first) {
    length += after->second;
    after = free_.erase(after);
  }
  if (after != free_.begin()) {
    auto before = std::prev(after);
    if (before->first + before->second == offset) {
      before->second += length;
      return;
    }
  }
  try {
    free_.emplace_hint(after, offset, length);
  } catch (const std::bad_alloc&) {
    // The range is forgotten: some of the file's 64 TiB of offsets, no memory.
  }
}

}  // namespace kvcached
