#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kvcached/driver.hpp"
#include "kvcached/geometry.hpp"
#include "kvcached/handle_cache.hpp"
#include "kvcached/status.hpp"

namespace kvcached {

/// The regions of one rank and the physical memory under their extents.
///
/// Commits and releases are all or nothing: where the driver refuses half-way, what was done
/// is undone before the status is returned. One thread at a time.
class Backing {
 public:
  /// `fill`: what committed memory holds. Where it is not zero, memory is filled with it when it
  /// is released, too, and what stays mapped after that, because a neighbour shares the granule,
  /// is looked at before it is committed again: see violation().
  Backing(Driver& driver, Geometry geometry, std::uint8_t fill = 0);
  Backing(const Backing&) = delete;
  Backing& operator=(const Backing&) = delete;
  ~Backing();

  /// Reserves the address space of every region, or of none. Nothing is left to do the second time.
  [[nodiscard]] Status reserve();

  /// Gives everything back, the address space too, so that reserve() may be called again.
  /// Pointers into the regions end here. What the driver refuses to take stays held.
  void reset();

  /// Bytes of memory that a commit would put under a unit and that are not there yet.
  [[nodiscard]] std::uint64_t bytes_to_commit(std::uint32_t first, std::uint32_t count) const;

  /// Puts memory under a unit, `count` extents from `first` on, in as few handles as their layout
  /// allows. It counts as held and mapped, and holds the fill once finish_commits() says so.
  /// out_of_memory where the driver, or `limit_bytes` (0: none) over held_bytes(), says no.
  [[nodiscard]] Status begin_commit(std::uint32_t first, std::uint32_t count,
                                    std::uint64_t limit_bytes);

  /// Waits until all units that were begun hold the fill: while the device fills one, the next
  /// one's memory is made. Where that fails, none of them is committed.
  [[nodiscard]] Status finish_commits();

  /// From here on begin_commit() zeroes nothing: what it puts under a unit, and what the unit finds
  /// there of its granules' earlier users, holds anything, and take_unzeroed() says where that is.
  /// For a fill of zero.
  void leave_zeroing() noexcept { leaves_zeroing_ = true; }
  /// What begin_commit() has left since the last call, in no order.
  [[nodiscard]] std::vector<ByteRange> take_unzeroed() { return std::exchange(unzeroed_, {}); }

  /// Begins and finishes one unit, and what was begun before it.
  [[nodiscard]] Status commit(std::uint32_t first, std::uint32_t count, std::uint64_t limit_bytes);

  /// Takes a committed unit's memory away. Granules that a neighbour still uses stay. A mapping
  /// that the driver refuses to undo stays held, and is used again by the next commit there.
  void release(std::uint32_t first, std::uint32_t count);

  /// Destroys kept handles that nobody wanted again since `older_than`. Returns what is kept.
  std::size_t trim(HandleCache::Clock::time_point older_than);

  /// Whether released handles wait for another use.
  [[nodiscard]] bool keeps_handles() const noexcept { return cache_.size() != 0; }
  /// Whether the regions have addresses.
  [[nodiscard]] bool reserved() const noexcept { return !bases_.empty(); }
  [[nodiscard]] void* region(std::size_t index) const { return bases_[index]; }
  [[nodiscard]] const Geometry& geometry() const noexcept { return geometry_; }
  [[nodiscard]] Driver& driver() noexcept { return driver_; }

  /// Bytes of physical memory taken from the driver: mapped, or kept for reuse.
  [[nodiscard]] std::uint64_t held_bytes() const noexcept {
    return mapped_bytes_ + cache_.held_bytes();
  }
  /// Bytes of physical memory in the address space.
  [[nodiscard]] std::uint64_t mapped_bytes() const noexcept { return mapped_bytes_; }

  /// Where memory was first found written to after its release, in one line; empty: nowhere.
  [[nodiscard]] const std::string& violation() const noexcept { return violation_; }

  /// A text for the last refusal.
  [[nodiscard]] const std::string& last_error() const noexcept { return last_error_; }

 private:
  static constexpr std::uint32_t kNone = 0xffffffffU;

  struct Granule {
    std::uint32_t mapping = kNone;
    std::uint32_t users = 0;
  };
  // What a mapping holds where no extent uses it: anything, the fill once the scrubs under way are
  // done, or the fill. Kept track of where the fill is not zero.
  enum class Contents : std::uint8_t { unknown, being_filled, filled };
  // A handle in the address space. `users` sums its granules' users.
  struct Mapping {
    Handle handle;
    std::uint32_t region = 0;
    std::uint64_t first = 0;
    std::uint64_t count = 0;
    std::uint64_t users = 0;
    bool accessible = false;
    // The commit that made it, and so fills all of it.
    std::uint64_t made_by = 0;
    Contents unused = Contents::unknown;
  };
  struct Unit {
    std::uint32_t first = 0;
    std::uint32_t count = 0;
  };

  [[nodiscard]] void* address(std::uint32_t region, std::uint64_t granule) const noexcept;
  [[nodiscard]] std::vector<GranuleRun> unmapped(const std::vector<GranuleRun>& runs) const;
  [[nodiscard]] Status map_fresh(const GranuleRun& run, std::uint32_t* mapping);
  bool unmap(std::uint32_t mapping);
  [[nodiscard]] Status reopen_left_over(const std::vector<GranuleRun>& runs);
  [[nodiscard]] Status scrub_unused(const std::vector<ByteRange>& bytes);
  [[nodiscard]] Status check_unwritten(const Mapping& mapping, std::uint32_t region,
                                       std::uint64_t begin, std::uint64_t end);
  void fill_released(const std::vector<ByteRange>& bytes);
  // Fills a range, or leaves that to whoever takes it.
  [[nodiscard]] Status start_scrub(const ByteRange& range);
  Status wait_for_scrubs();
  Status fail(Status status, const char* what);

  Driver& driver_;
  Geometry geometry_;
  std::size_t granule_;
  std::uint8_t fill_;
  bool leaves_zeroing_ = false;
  std::vector<ByteRange> unzeroed_;
  std::vector<void*> bases_;
  std::vector<std::uint64_t> reserved_;
  std::vector<std::vector<Granule>> granules_;
  std::vector<Mapping> mappings_;
  std::vector<std::uint32_t> free_mappings_;
  HandleCache cache_;
  std::vector<Unit> begun_;
  // What waits have said since the first of them was begun.
  Status begun_status_ = Status::ok;
  // Mappings in which scrubs are under way, where the fill is not zero; some may be gone.
  std::vector<std::uint32_t> scrubbing_;
  std::uint64_t commits_ = 0;
  std::uint64_t mapped_bytes_ = 0;
  std::string violation_;
  std::string last_error_;
};

}  // namespace kvcached
