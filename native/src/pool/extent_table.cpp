#include "kvcached/extent_table.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace kvcached {

ExtentTable::ExtentTable(std::vector<std::unique_ptr<Row>> rows)
    : rows_(std::move(rows)),
      num_blocks_(rows_.front()->facts().num_blocks),
      num_extents_(rows_.front()->facts().num_extents),
      blocks_per_extent_(rows_.front()->facts().blocks_per_extent),
      pinned_(rows_.front()->facts().pinned_extents),
      max_unit_(rows_.front()->facts().max_unit_extents),
      absent_(num_extents_),
      empty_units_(num_extents_),
      unit_first_(num_extents_),
      unit_count_(num_extents_, 1),
      unit_busy_(num_extents_, 0),
      fences_(num_extents_, 0) {
  for (const auto& row : rows_) max_unit_ = std::min(max_unit_, row->facts().max_unit_extents);
  for (std::uint32_t extent = 0; extent < num_extents_; ++extent) {
    unit_first_[extent] = extent;
    if (extent >= pinned_) absent_.set(extent);
  }
  usable_ = pinned_;
  for (std::uint32_t extent = 0; extent < pinned_; ++extent) {
    usable_blocks_ += blocks_in({extent, 1});
  }
}

std::uint32_t ExtentTable::end_block(std::uint32_t extent) const noexcept {
  return std::min((extent + 1) * blocks_per_extent_, num_blocks_);
}

std::uint32_t ExtentTable::blocks_in(Row::Request unit) const noexcept {
  return end_block(unit.first + unit.count - 1) - first_block(unit.first);
}

std::uint32_t ExtentTable::absent_blocks(std::uint32_t extents) const noexcept {
  if (extents < absent_.count()) return extents * blocks_per_extent_;
  // All of them: the last extent may be short.
  const std::uint32_t last = num_extents_ - 1;
  const std::uint32_t lacking = absent_.test(last) ? blocks_per_extent_ - blocks_in({last, 1}) : 0;
  return absent_.count() * blocks_per_extent_ - lacking;
}

Row::Request ExtentTable::unit_of(std::uint32_t extent) const noexcept {
  const std::uint32_t first = unit_first_[extent];
  return {first, unit_count_[first]};
}

std::uint32_t ExtentTable::unit_size(std::uint32_t extents, std::uint32_t at_once) const noexcept {
  // One block pins its whole unit. A unit of at most a sixteenth of what is in use bounds what
  // that can waste; beyond it larger handles only save driver calls.
  const std::uint32_t in_use = (usable_ - pinned_ - empty_) / 16;
  // What is needed at once will be in use at once, and somebody waits for all of it: cut into a
  // hundred handles or two it takes CUDA some 10 ms, however much it is.
  const std::uint32_t needed = at_once / 128;
  return std::bit_floor(std::max(1U, std::min({extents, max_unit_, std::max(in_use, needed)})));
}

bool ExtentTable::run_is_absent(std::uint32_t first, std::uint32_t count) const noexcept {
  if (first + count > num_extents_) return false;
  for (std::uint32_t extent = first; extent < first + count; ++extent) {
    if (!absent_.test(extent)) return false;
  }
  return true;
}

std::uint32_t ExtentTable::want(std::uint32_t extents, std::uint32_t at_once) {
  const std::uint32_t first = absent_.first();
  if (first == kNone) return 0;
  std::uint32_t count = unit_size(extents, at_once);
  while (count > 1 && (first % count != 0 || !run_is_absent(first, count))) count /= 2;
  const Row::Request unit{first, count};
  for (std::uint32_t extent = first; extent < first + count; ++extent) {
    absent_.clear(extent);
    unit_first_[extent] = first;
  }
  unit_count_[first] = count;
  unit_busy_[first] = 0;
  for (const auto& row : rows_) tell(*row, unit, ExtentState::wanted, 0);
  wanted_ += count;
  wanted_blocks_ += blocks_in(unit);
  pending_.push_back({unit, true});
  return count;
}

void ExtentTable::release(std::uint32_t first) {
  const Row::Request unit = unit_of(first);
  empty_units_.clear(first);
  empty_ -= unit.count;
  usable_ -= unit.count;
  usable_blocks_ -= blocks_in(unit);
  for (const auto& row : rows_) tell(*row, unit, ExtentState::releasing, fences_[first]);
  releasing_ += unit.count;
  pending_.push_back({unit, false});
}

void ExtentTable::poll(Changes* changes) {
  std::erase_if(pending_, [&](Pending& pending) { return settle(&pending, changes); });
}

bool ExtentTable::settle(Pending* pending, Changes* changes) {
  const Row::Request unit = pending->unit;
  std::size_t committed = 0;
  std::size_t denied = 0;
  for (const auto& row : rows_) {
    switch (row->state(unit.first).load(std::memory_order_acquire)) {
      case ExtentState::wanted:
      case ExtentState::releasing:
        return false;
      case ExtentState::committed:
        ++committed;
        break;
      case ExtentState::denied:
        ++denied;
        break;
      case ExtentState::absent:
        break;
    }
  }
  if (committed == rows_.size()) {
    adopt(unit);
    changes->usable.push_back(unit);
    return true;
  }
  if (pending->wanted) {
    pending->wanted = false;
    wanted_ -= unit.count;
    wanted_blocks_ -= blocks_in(unit);
    releasing_ += unit.count;
    changes->denied = changes->denied || denied != 0;
    // All or nothing: what the other ranks have committed goes back.
    for (const auto& row : rows_) {
      const ExtentState state = row->state(unit.first).load(std::memory_order_acquire);
      if (state == ExtentState::committed) tell(*row, unit, ExtentState::releasing, kNeverUsable);
      if (state == ExtentState::denied) {
        for (std::uint32_t extent = unit.first; extent < unit.first + unit.count; ++extent) {
          row->state(extent).store(ExtentState::absent, std::memory_order_release);
        }
      }
    }
    if (committed != 0) return false;
  } else {
    changes->released = true;
  }
  releasing_ -= unit.count;
  for (std::uint32_t extent = unit.first; extent < unit.first + unit.count; ++extent) {
    absent_.set(extent);
  }
  return true;
}

void ExtentTable::adopt(Row::Request unit) {
  wanted_ -= unit.count;
  wanted_blocks_ -= blocks_in(unit);
  usable_ += unit.count;
  empty_ += unit.count;
  usable_blocks_ += blocks_in(unit);
  fences_[unit.first] = 0;
  empty_units_.set(unit.first);
}

void ExtentTable::mark_busy(std::uint32_t extent) noexcept {
  if (extent < pinned_) return;
  const std::uint32_t first = unit_first_[extent];
  if (unit_busy_[first]++ == 0) {
    empty_units_.clear(first);
    empty_ -= unit_count_[first];
  }
}

void ExtentTable::mark_empty(std::uint32_t extent, std::uint64_t fence) noexcept {
  if (extent < pinned_) return;
  const std::uint32_t first = unit_first_[extent];
  fences_[first] = fence;
  if (--unit_busy_[first] == 0) {
    empty_units_.set(first);
    empty_ += unit_count_[first];
  }
}

void ExtentTable::tell(Row& row, Row::Request unit, ExtentState state, std::uint64_t fence) {
  for (std::uint32_t extent = unit.first; extent < unit.first + unit.count; ++extent) {
    row.fence(extent).store(fence, std::memory_order_relaxed);
    row.state(extent).store(state, std::memory_order_release);
  }
  row.push(unit);
}

bool ExtentTable::owes(const Row& row, std::uint32_t extent) noexcept {
  const ExtentState state = row.state(extent).load(std::memory_order_acquire);
  return state == ExtentState::wanted || state == ExtentState::releasing;
}

Row* ExtentTable::owing() const noexcept {
  // Units asked for first: a release may wait for its fence, and nobody waits for a release.
  for (const bool wanted : {true, false}) {
    for (const Pending& pending : pending_) {
      if (pending.wanted != wanted) continue;
      for (const auto& row : rows_) {
        if (owes(*row, pending.unit.first)) return row.get();
      }
      // Answered, and not looked at yet: nobody should sleep.
      return nullptr;
    }
  }
  return nullptr;
}

std::uint32_t ExtentTable::capacity_epoch() const noexcept {
  std::uint32_t sum = 0;
  for (const auto& row : rows_) {
    sum += row->header().capacity_epoch.load(std::memory_order_acquire);
  }
  return sum;
}

}  // namespace kvcached
