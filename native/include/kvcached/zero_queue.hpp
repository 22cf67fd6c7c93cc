#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "kvcached/backing.hpp"
#include "kvcached/driver.hpp"
#include "kvcached/geometry.hpp"
#include "kvcached/status.hpp"

namespace kvcached {

/// Committed memory that holds anything until the engine's own stream has zeroed it, ahead of the
/// first step that may use it.
///
/// The pager's thread adds and withdraws units, named by their first extent; the worker's thread
/// queues what waits. A unit is added before anybody can learn that it is committed, so that
/// queue() ahead of a step finds every unit whose blocks the step was given.
class ZeroQueue {
 public:
  /// `backing`: whose regions the ranges are of.
  explicit ZeroQueue(Backing& backing) : backing_(backing) {}

  /// A unit's memory is there. Not for use by anybody yet.
  void add(std::uint32_t unit, std::vector<ByteRange> ranges);

  /// Whether anything waits. Costs one load of memory.
  [[nodiscard]] bool any() const noexcept { return waiting_for_.load(std::memory_order_acquire); }

  /// Queues the zeroing of all that waits on `stream`, of which step `step` is launched next. Where
  /// the driver refuses, part of it may be under way, and all of it waits as before.
  [[nodiscard]] Status queue(Stream stream, std::uint64_t step);

  /// No step that is still to begin uses a unit. What waits of it is forgotten; returns the step
  /// ahead of which some was queued, so that the memory has to stay until the device is done with
  /// that step, or 0.
  [[nodiscard]] std::uint64_t withdraw(std::uint32_t unit);

 private:
  struct Waiting {
    std::uint32_t unit = 0;
    std::vector<ByteRange> ranges;
  };

  Backing& backing_;
  std::atomic<bool> waiting_for_{false};  // anything
  std::mutex mutex_;                      // while a driver's calls queue, too: none of it may go
  std::vector<Waiting> waiting_;
  std::unordered_map<std::uint32_t, std::uint64_t> queued_ahead_of_;  // a step, by unit
};

}  // namespace kvcached
