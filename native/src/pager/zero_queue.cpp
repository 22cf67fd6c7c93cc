#include "kvcached/zero_queue.hpp"

#include <algorithm>
#include <tuple>
#include <utility>

namespace kvcached {
namespace {

// Ranges side by side in a region are one call. Two regions are none, wherever they lie: to CUDA no
// call crosses a reservation's end.
std::vector<ByteRange> joined(std::vector<ByteRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const ByteRange& one, const ByteRange& other) {
    return std::tie(one.region, one.begin) < std::tie(other.region, other.begin);
  });
  std::vector<ByteRange> result;
  for (const ByteRange& range : ranges) {
    if (!result.empty() && result.back().region == range.region &&
        range.begin <= result.back().end) {
      result.back().end = std::max(result.back().end, range.end);
    } else {
      result.push_back(range);
    }
  }
  return result;
}

}  // namespace

void ZeroQueue::add(std::uint32_t unit, std::vector<ByteRange> ranges) {
  if (ranges.empty()) return;
  const std::lock_guard lock(mutex_);
  waiting_.push_back({unit, std::move(ranges)});
  waiting_for_.store(true, std::memory_order_release);
}

Status ZeroQueue::queue(Stream stream, std::uint64_t step) {
  const std::lock_guard lock(mutex_);
  std::vector<ByteRange> ranges;
  for (const Waiting& waiting : waiting_) {
    queued_ahead_of_[waiting.unit] = step;
    ranges.insert(ranges.end(), waiting.ranges.begin(), waiting.ranges.end());
  }
  for (const ByteRange& range : joined(std::move(ranges))) {
    void* const where = static_cast<char*>(backing_.region(range.region)) + range.begin;
    const Status status = backing_.driver().zero_on(stream, where, range.end - range.begin);
    if (status != Status::ok) return status;
  }
  waiting_.clear();
  waiting_for_.store(false, std::memory_order_release);
  return Status::ok;
}

std::uint64_t ZeroQueue::withdraw(std::uint32_t unit) {
  const std::lock_guard lock(mutex_);
  std::erase_if(waiting_, [unit](const Waiting& waiting) { return waiting.unit == unit; });
  waiting_for_.store(!waiting_.empty(), std::memory_order_release);
  const auto queued = queued_ahead_of_.extract(unit);
  return queued ? queued.mapped() : 0;
}

}  // namespace kvcached
