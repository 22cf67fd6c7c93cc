#include "kvcached/launches.hpp"

namespace kvcached {

bool Launches::add(std::uint64_t step, Event event) {
  const std::lock_guard lock(mutex_);
  // Nothing to wait for: the device is the processor, and it is done.
  if (event.value == 0 && launches_.empty()) return true;
  launches_.push_back({step, event});
  // Nobody asks for events while no release waits. A later event stands for all before it.
  if (launches_.size() > kMost) launches_.pop_front();
  return false;
}

std::optional<std::uint64_t> Launches::retire(Driver& driver) {
  std::optional<std::uint64_t> last;
  for (;;) {
    Launch oldest;
    {
      const std::lock_guard lock(mutex_);
      if (launches_.empty()) return last;
      oldest = launches_.front();
    }
    bool passed = false;
    if (driver.event_passed(oldest.event, &passed) != Status::ok || !passed) return last;
    const std::lock_guard lock(mutex_);
    // The worker's thread may have dropped it meanwhile.
    while (!launches_.empty() && launches_.front().step <= oldest.step) launches_.pop_front();
    last = oldest.step;
  }
}

}  // namespace kvcached
