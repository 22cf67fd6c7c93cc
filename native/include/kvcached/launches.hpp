#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>

#include "kvcached/driver.hpp"

namespace kvcached {

/// The steps that a rank has launched and that its device was not yet seen to be done with.
///
/// add() is the worker's thread's, retire() the pager's; either holds the lock for a push or a pop.
class Launches {
 public:
  /// How many are remembered; an event may be recorded again after that many steps.
  static constexpr std::size_t kMost = 64;

  /// Step `step` is launched; `event` passes when the device is done with it. Returns whether that
  /// is so already: the event always has passed, and nothing launched before waits.
  [[nodiscard]] bool add(std::uint64_t step, Event event);

  /// Asks the driver for the oldest events and forgets those that have passed. Returns the last
  /// step of them, or nothing where none has.
  [[nodiscard]] std::optional<std::uint64_t> retire(Driver& driver);

 private:
  struct Launch {
    std::uint64_t step = 0;
    Event event;
  };

  std::mutex mutex_;
  std::deque<Launch> launches_;
};

}  // namespace kvcached
