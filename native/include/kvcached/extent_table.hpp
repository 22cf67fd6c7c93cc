#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kvcached/bitmap.hpp"
#include "kvcached/page_table.hpp"

namespace kvcached {

/// What the pool knows of its extents, over the rows of all ranks.
///
/// Extents are committed and released in *units*: aligned runs of a power of two, which one
/// handle a region part backs. A unit is usable when every rank has it COMMITTED, and absent
/// when every rank has it ABSENT.
class ExtentTable {
 public:
  static constexpr std::uint32_t kNone = 0xffffffffU;

  /// Units that changed since the last poll.
  struct Changes {
    std::vector<Row::Request> usable;
    bool denied = false;
    bool released = false;
  };

  explicit ExtentTable(std::vector<std::unique_ptr<Row>> rows);
  ExtentTable(const ExtentTable&) = delete;
  ExtentTable& operator=(const ExtentTable&) = delete;

  /// Asks every rank for the lowest absent unit of up to `extents` extents, out of `at_once` that
  /// are needed together. Returns its size, 0 where none is absent.
  std::uint32_t want(std::uint32_t extents, std::uint32_t at_once = 0);
  /// Tells every rank to release the unit that starts at `first`, once `fence` is over.
  void release(std::uint32_t first);
  /// Looks at what the ranks have answered. A unit refused by one rank is released on the others.
  void poll(Changes* changes);

  /// A used or cached block appeared in an empty extent.
  void mark_busy(std::uint32_t extent) noexcept;
  /// The last used or cached block left an extent, in step `fence`.
  void mark_empty(std::uint32_t extent, std::uint64_t fence) noexcept;

  /// The highest empty unit that is not pinned, or kNone.
  [[nodiscard]] std::uint32_t highest_empty() const noexcept { return empty_units_.last(); }
  [[nodiscard]] Row::Request unit_of(std::uint32_t extent) const noexcept;
  [[nodiscard]] std::uint32_t blocks_in(Row::Request unit) const noexcept;

  [[nodiscard]] std::uint32_t extent_of(std::uint32_t block) const noexcept {
    return block / blocks_per_extent_;
  }
  [[nodiscard]] std::uint32_t first_block(std::uint32_t extent) const noexcept {
    return extent * blocks_per_extent_;
  }
  /// One past the last block of an extent.
  [[nodiscard]] std::uint32_t end_block(std::uint32_t extent) const noexcept;

  [[nodiscard]] std::uint32_t num_blocks() const noexcept { return num_blocks_; }
  [[nodiscard]] std::uint32_t num_extents() const noexcept { return num_extents_; }
  [[nodiscard]] std::uint32_t blocks_per_extent() const noexcept { return blocks_per_extent_; }
  [[nodiscard]] std::uint32_t pinned() const noexcept { return pinned_; }
  [[nodiscard]] std::uint32_t usable() const noexcept { return usable_; }
  [[nodiscard]] std::uint32_t usable_blocks() const noexcept { return usable_blocks_; }
  /// Usable extents without a used or cached block, the pinned ones not counted.
  [[nodiscard]] std::uint32_t empty() const noexcept { return empty_; }
  [[nodiscard]] std::uint32_t wanted() const noexcept { return wanted_; }
  [[nodiscard]] std::uint32_t wanted_blocks() const noexcept { return wanted_blocks_; }
  [[nodiscard]] std::uint32_t releasing() const noexcept { return releasing_; }
  [[nodiscard]] std::uint32_t absent() const noexcept { return absent_.count(); }
  /// Blocks of the `extents` lowest absent extents, and of no more than there are.
  [[nodiscard]] std::uint32_t absent_blocks(std::uint32_t extents) const noexcept;
  /// Units that some rank owes an answer for.
  [[nodiscard]] std::size_t pending() const noexcept { return pending_.size(); }
  /// A rank that owes an answer, for sleeping on its row.
  [[nodiscard]] Row* owing() const noexcept;

  [[nodiscard]] std::size_t ranks() const noexcept { return rows_.size(); }
  [[nodiscard]] Row& row(std::size_t rank) const noexcept { return *rows_[rank]; }
  /// Sum over the ranks of what may make a refused commit succeed.
  [[nodiscard]] std::uint32_t capacity_epoch() const noexcept;

 private:
  [[nodiscard]] std::uint32_t unit_size(std::uint32_t extents,
                                        std::uint32_t at_once) const noexcept;
  [[nodiscard]] bool run_is_absent(std::uint32_t first, std::uint32_t count) const noexcept;
  struct Pending {
    Row::Request unit;
    bool wanted = false;
  };

  [[nodiscard]] static bool owes(const Row& row, std::uint32_t extent) noexcept;
  bool settle(Pending* pending, Changes* changes);
  static void tell(Row& row, Row::Request unit, ExtentState state, std::uint64_t fence);
  void adopt(Row::Request unit);

  std::vector<std::unique_ptr<Row>> rows_;
  std::uint32_t num_blocks_;
  std::uint32_t num_extents_;
  std::uint32_t blocks_per_extent_;
  std::uint32_t pinned_;
  std::uint32_t max_unit_;

  Bitmap absent_;
  Bitmap empty_units_;                     // by a unit's first extent
  std::vector<std::uint32_t> unit_first_;  // by extent
  std::vector<std::uint32_t> unit_count_;  // by a unit's first extent
  std::vector<std::uint32_t> unit_busy_;   // busy extents, by a unit's first extent
  std::vector<std::uint64_t> fences_;      // by a unit's first extent
  std::vector<Pending> pending_;

  std::uint32_t usable_ = 0;
  std::uint32_t usable_blocks_ = 0;
  std::uint32_t empty_ = 0;
  std::uint32_t wanted_ = 0;
  std::uint32_t wanted_blocks_ = 0;
  std::uint32_t releasing_ = 0;
};

}  // namespace kvcached
