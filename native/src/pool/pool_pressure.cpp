#include <algorithm>
#include <utility>

#include "kvcached/pool.hpp"

namespace kvcached {

Status Pool::watch_leases(std::string* error) {
  return LeaseWatch::open(extents_, &leases_, error);
}

std::uint32_t Pool::capacity_epoch() const noexcept {
  return extents_.capacity_epoch() + (leases_ == nullptr ? 0 : leases_->epoch());
}

// Extents to commit before `blocks` more blocks are free, the free ones of extents in use apart.
std::uint32_t Pool::extents_for(std::uint32_t blocks) const noexcept {
  const std::uint32_t per_extent = extents_.blocks_per_extent();
  const std::uint32_t in_empty = std::min(extents_.empty() * per_extent, free_.count());
  const std::uint32_t in_use = free_.count() - in_empty;
  return blocks > in_use ? extents_of(blocks - in_use) : 0;
}

void Pool::tell(std::uint32_t blocks) {
  if (leases_ == nullptr) return;
  const std::uint32_t busy = extents_.usable() - extents_.empty();
  MemoryUse use;
  use.usable = extents_.usable();
  // The engine's own prefixes lie anywhere; they free at most as many extents as they would fill.
  const std::uint32_t kept = kept_by_engine_ / extents_.blocks_per_extent();
  use.cached = std::min(cache_held_extents_ + kept, busy);
  use.live = busy > use.cached ? busy - use.cached : 0;
  use.empty = extents_.empty();
  use.leaving = extents_.releasing();
  use.keep = extents_.pinned() + std::min(extents_of(keep_blocks_), use.live);
  use.wanted = use.live + extents_for(std::max({blocks, asked_blocks_, demanded_blocks_}));
  leases_->tell(use);
  const std::uint32_t account = use.usable + extents_.wanted();
  if (use.wanted > account && use.wanted - account > leases_->grantable()) leases_->contend();
}

void Pool::ask(std::uint32_t blocks) {
  asked_blocks_ = std::max(asked_blocks_, blocks);
  tell(blocks);
}

void Pool::report() {
  if (leases_ == nullptr) return;
  tell(expected_blocks_);
  if (given_ != 0) leases_->gave(std::exchange(given_, 0));
}

void Pool::answer_pressure() {
  if (leases_ == nullptr) return;
  recall_promised();
  release_drained();
  // What has left since is no longer held; counted as leaving, too, it would hide what is still
  // owed.
  if (leases_->told().leaving != extents_.releasing()) tell(expected_blocks_);
  pressure_ = leases_->pressure();
  drain(pressure_.hard);
}

void Pool::release_drained() {
  for (std::uint32_t extent = extents_.pinned();
       extent < extents_.num_extents() && draining_extents_ > 0; ++extent) {
    if (draining_[extent] == 0 || used_in_unit_[extent] + cached_in_unit_[extent] != 0) continue;
    const Row::Request unit = extents_.unit_of(extent);
    if (!may_go(unit)) continue;
    withdraw(unit);
    extents_.release(extent);
    given_ += unit.count;
  }
}

// Whether a unit's release leaves as much as is to be held.
bool Pool::may_go(Row::Request unit) const noexcept {
  return extents_.usable_blocks() >= held_blocks_ + extents_.blocks_in(unit);
}

void Pool::drain(std::uint32_t extents) {
  if (extents > draining_extents_) {
    // From the top, which the pool empties anyway.
    for (std::uint32_t extent = extents_.num_extents();
         extent-- > extents_.pinned() && draining_extents_ < extents;) {
      const Row::Request unit = extents_.unit_of(extent);
      if (unit.first != extent || draining_[extent] != 0) continue;
      const std::uint32_t busy = used_in_unit_[extent] + cached_in_unit_[extent];
      if (busy == 0) continue;
      if (free_.count() < promised_blocks_ + extents_.blocks_in(unit) - busy) continue;
      set_draining(unit, true);
    }
    return;
  }
  // Lowest first: what stays is what empties last.
  for (std::uint32_t extent = extents_.pinned();
       extent < extents_.num_extents() && draining_extents_ > extents; ++extent) {
    if (draining_[extent] != 0) set_draining(extents_.unit_of(extent), false);
  }
}

// What came back to extents that are being emptied may be what was promised.
void Pool::recall_promised() {
  for (std::uint32_t extent = extents_.pinned();
       extent < extents_.num_extents() && draining_extents_ > 0 && free_.count() < promised_blocks_;
       ++extent) {
    if (draining_[extent] != 0) set_draining(extents_.unit_of(extent), false);
  }
}

void Pool::set_draining(Row::Request unit, bool draining) {
  if ((draining_[unit.first] != 0) == draining) return;
  draining_[unit.first] = draining ? 1 : 0;
  if (draining) {
    draining_extents_ += unit.count;
  } else {
    draining_extents_ -= unit.count;
  }
  const std::uint32_t end = extents_.end_block(unit.first + unit.count - 1);
  for (std::uint32_t block = extents_.first_block(unit.first); block < end; ++block) {
    if (draining && states_[block] == BlockState::free) {
      states_[block] = BlockState::withheld;
      free_.clear(block);
      ++withheld_;
    } else if (!draining && states_[block] == BlockState::withheld) {
      states_[block] = BlockState::free;
      free_.set(block);
      --withheld_;
    }
  }
}

std::vector<std::uint32_t> Pool::owed() const {
  std::vector<std::uint32_t> blocks;
  if (!pressed() || cached_.size() == 0) return blocks;
  // Slack goes first, and costs nobody a prefix.
  const std::uint32_t leaving = std::min(pressure_.soft, extents_.empty());
  std::uint32_t missing = pressure_.soft - leaving;
  std::vector<bool> seen(extents_.num_extents(), false);
  for (std::uint32_t block = cached_.front(); block != BlockList::kNone;
       block = cached_.after(block)) {
    const Row::Request unit = extents_.unit_of(extents_.extent_of(block));
    if (seen[unit.first]) continue;
    const bool wanted = missing > 0 && cache_holds(unit);
    if (!wanted && draining_[unit.first] == 0) continue;
    seen[unit.first] = true;
    if (wanted) missing -= std::min(missing, unit.count);
    const std::uint32_t end = extents_.end_block(unit.first + unit.count - 1);
    for (std::uint32_t mate = extents_.first_block(unit.first); mate < end; ++mate) {
      if (states_[mate] == BlockState::cached) blocks.push_back(mate);
    }
    if (missing == 0 && draining_extents_ == 0) break;
  }
  return blocks;
}

void Pool::wait_for_memory(Clock::time_point deadline) {
  if (extents_.wanted() != 0 || leases_ == nullptr) {
    wait(deadline);
    return;
  }
  const std::uint32_t seen = leases_->epoch();
  if (denied_ && capacity_epoch() != denied_epoch_) return;
  leases_->wait_for_change(seen, deadline);
}

}  // namespace kvcached
