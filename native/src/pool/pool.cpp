#include "kvcached/pool.hpp"

#include <algorithm>
#include <utility>

#include "kvcached/futex.hpp"

namespace kvcached {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// A refused driver is asked again after this, because other processes free memory without
// telling us.
constexpr milliseconds kRetryDenied{100};
constexpr seconds kRecently{10};
// Longest wait of ensure() for extents on their way out.
constexpr milliseconds kReleasePatience{5};

}  // namespace

Pool::Pool(std::vector<std::unique_ptr<Row>> rows, SlackBounds slack)
    : extents_(std::move(rows)),
      states_(extents_.num_blocks(), BlockState::absent),
      free_(extents_.num_blocks()),
      cached_(extents_.num_blocks()),
      cached_in_extent_(extents_.num_extents(), 0),
      used_in_extent_(extents_.num_extents(), 0),
      used_in_unit_(extents_.num_extents(), 0),
      cached_in_unit_(extents_.num_extents(), 0),
      slack_(slack),
      draining_(extents_.num_extents(), 0) {
  limit_bytes_ = extents_.row(0).header().limit_bytes.load();
  for (std::uint32_t extent = 0; extent < extents_.pinned(); ++extent) adopt({extent, 1});
}

std::uint32_t Pool::take() noexcept {
  std::uint32_t block = free_.first();
  const bool cached = block == Bitmap::kNone;
  if (cached) block = cached_.front();
  if (block == BlockList::kNone) return kNone;
  (void)remove(block);
  return block;
}

bool Pool::remove(std::uint32_t block) noexcept {
  if (block >= states_.size() ||
      (states_[block] != BlockState::free && states_[block] != BlockState::cached)) {
    return false;
  }
  const std::uint32_t extent = extents_.extent_of(block);
  const Row::Request unit = extents_.unit_of(extent);
  if (cache_holds(unit)) cache_held_extents_ -= unit.count;
  if (states_[block] == BlockState::free) {
    free_.clear(block);
    if (used_in_extent_[extent] + cached_in_extent_[extent] == 0) extents_.mark_busy(extent);
  } else {
    cached_.remove(block);
    --cached_in_extent_[extent];
    --cached_in_unit_[unit.first];
  }
  states_[block] = BlockState::used;
  ++used_in_extent_[extent];
  ++used_in_unit_[unit.first];
  return true;
}

bool Pool::give(std::uint32_t block) noexcept {
  if (block >= states_.size() || states_[block] != BlockState::used) return false;
  const std::uint32_t extent = extents_.extent_of(block);
  const bool leaves = draining_[extents_.unit_of(extent).first] != 0;
  states_[block] = leaves ? BlockState::withheld : BlockState::free;
  if (leaves) {
    ++withheld_;
  } else {
    free_.set(block);
  }
  --used_in_extent_[extent];
  if (used_in_extent_[extent] + cached_in_extent_[extent] == 0) {
    extents_.mark_empty(extent, step_);
  }
  const Row::Request unit = extents_.unit_of(extent);
  --used_in_unit_[unit.first];
  if (cache_holds(unit)) cache_held_extents_ += unit.count;
  return true;
}

bool Pool::give_cached(std::uint32_t block) noexcept {
  if (block >= states_.size() || states_[block] != BlockState::used) return false;
  const std::uint32_t extent = extents_.extent_of(block);
  states_[block] = BlockState::cached;
  cached_.push_back(block);
  --used_in_extent_[extent];
  ++cached_in_extent_[extent];
  const Row::Request unit = extents_.unit_of(extent);
  --used_in_unit_[unit.first];
  ++cached_in_unit_[unit.first];
  if (cache_holds(unit)) cache_held_extents_ += unit.count;
  return true;
}

bool Pool::forget(std::uint32_t block) noexcept {
  if (block >= states_.size() || states_[block] != BlockState::cached) return false;
  (void)remove(block);
  return give(block);
}

bool Pool::caches_more_than(std::uint32_t blocks) const noexcept {
  return cached_.size() > blocks || cache_held_extents_ > extents_of(blocks);
}

std::vector<std::uint32_t> Pool::coldest(std::uint32_t keep) const {
  // A unit with one cached block costs as much as one full of them, so the cap bounds the
  // extents that only the cache holds, too.
  std::vector<std::uint32_t> chosen;
  if (!caches_more_than(keep)) return chosen;
  const std::uint32_t keep_extents = extents_of(keep);
  std::uint32_t cached = cached_.size();
  std::uint32_t held = cache_held_extents_;
  std::vector<bool> seen(extents_.num_extents(), false);
  for (std::uint32_t block = cached_.front();
       block != BlockList::kNone && (cached > keep || held > keep_extents);
       block = cached_.after(block)) {
    const Row::Request unit = extents_.unit_of(extents_.extent_of(block));
    if (seen[unit.first]) continue;
    if (!cache_holds(unit)) {
      if (cached > keep) {
        chosen.push_back(block);
        --cached;
      }
      continue;
    }
    seen[unit.first] = true;
    held -= unit.count;
    cached -= cached_in_unit_[unit.first];
    const std::uint32_t end = extents_.end_block(unit.first + unit.count - 1);
    for (std::uint32_t mate = extents_.first_block(unit.first); mate < end; ++mate) {
      if (states_[mate] == BlockState::cached) chosen.push_back(mate);
    }
  }
  return chosen;
}

std::vector<std::uint32_t> Pool::in_order() const {
  std::vector<std::uint32_t> blocks;
  blocks.reserve(num_free());
  for (std::uint32_t block = free_.first(); block != Bitmap::kNone; block = free_.next(block)) {
    blocks.push_back(block);
  }
  for (std::uint32_t block = cached_.front(); block != BlockList::kNone;
       block = cached_.after(block)) {
    blocks.push_back(block);
  }
  return blocks;
}

std::uint32_t Pool::num_growable() const {
  std::uint32_t extents = growable_extents();
  if (leases_ != nullptr && !denied_) {
    const std::uint32_t reachable = leases_->reachable();
    const std::uint32_t coming = extents_.wanted();
    const std::uint32_t more = reachable > coming ? reachable - coming : 0;
    extents = std::max(extents, std::min(extents_.absent(), more));
  }
  return extents_.absent_blocks(extents) + extents_.wanted_blocks();
}

std::uint32_t Pool::growable_extents() const {
  if (denied_) return 0;
  if (leases_ != nullptr) {
    // What was asked for and not granted yet comes out of the same account.
    const std::uint32_t grantable = leases_->grantable();
    const std::uint32_t coming = extents_.wanted();
    return std::min(extents_.absent(), grantable > coming ? grantable - coming : 0);
  }
  if (limit_bytes_ == 0) return extents_.absent();
  const RowFacts& facts = extents_.row(0).facts();
  // Extents that share granules at their ends take less side by side than one alone. The pager
  // has the last word.
  const std::uint64_t share = facts.virtual_bytes / facts.num_blocks * facts.blocks_per_extent;
  const std::uint64_t bytes = std::min(facts.extent_bytes, std::max<std::uint64_t>(share, 1));
  // What is on its way out counts until it is gone.
  const std::uint64_t held =
      std::uint64_t{extents_.usable()} + extents_.wanted() + extents_.releasing();
  const std::uint64_t allowed = limit_bytes_ / bytes;
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(extents_.absent(), allowed > held ? allowed - held : 0));
}

bool Pool::ensure(std::uint32_t blocks, Clock::time_point deadline) {
  if (free_.count() >= blocks) return true;
  poll();
  ask(blocks);
  if (free_.count() < blocks) {
    const std::uint32_t missing = extents_of(blocks - free_.count());
    const Clock::time_point since = Clock::now();
    const bool there = sleep_for(blocks, deadline);
    note_wait(missing, since);
    if (!there) return false;
  }
  // They are about to be taken, and count as live then.
  asked_blocks_ = 0;
  return true;
}

void Pool::note_wait(std::uint32_t extents, Clock::time_point since) noexcept {
  const auto slept = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - since).count());
  RowHeader& header = extents_.row(0).header();
  // One thread writes these, and anybody may read them.
  const auto add = [](std::atomic<std::uint64_t>& counter, std::uint64_t more) {
    counter.store(counter.load(std::memory_order_relaxed) + more, std::memory_order_relaxed);
  };
  if (step_wait_ns_ == 0) add(header.waits, 1);
  add(header.waited_extents, extents);
  if (step_ <= processed_ + 1) add(header.exposed_extents, extents);
  add(header.wait_ns, slept);
  step_wait_ns_ += slept;
  if (step_wait_ns_ > header.longest_wait_ns.load(std::memory_order_relaxed)) {
    header.longest_wait_ns.store(step_wait_ns_, std::memory_order_relaxed);
  }
}

bool Pool::sleep_for(std::uint32_t blocks, Clock::time_point deadline) {
  // Memory on its way out may be what a limit leaves no room for. Its fence may need this very
  // step to end, so there is no long wait for it.
  const Clock::time_point releases_by = std::min(deadline, Clock::now() + kReleasePatience);
  while (free_.count() < blocks) {
    const std::uint32_t coming = extents_.wanted_blocks();
    const std::uint32_t missing = blocks - free_.count();
    if (missing > coming && !denied_) {
      grow(extents_of(missing - coming), blocks / extents_.blocks_per_extent());
    }
    const bool coming_in = extents_.wanted() != 0;
    const Clock::time_point until = coming_in ? deadline : releases_by;
    const bool owed_to_us = !coming_in && !denied_ && extents_.absent() != 0 &&
                            leases_ != nullptr && leases_->reachable() != 0;
    if (!coming_in && !owed_to_us && (denied_ || extents_.releasing() == 0)) break;
    if (Clock::now() >= until) break;
    if (owed_to_us) {
      const std::uint32_t seen = leases_->epoch();
      leases_->contend();
      if (growable_extents() == 0) leases_->wait_for_change(seen, until);
    } else {
      wait(until);
    }
    poll();
  }
  return free_.count() >= blocks;
}

void Pool::expect(std::uint32_t blocks, std::uint32_t refill) {
  expected_blocks_ = blocks;
  refill_blocks_ = std::max(blocks, refill);
  tell(blocks);
  const std::uint32_t ahead = free_.count() + extents_.wanted_blocks();
  if (blocks > ahead && !denied_) {
    grow(extents_of(refill_blocks_ - ahead), refill_blocks_ / extents_.blocks_per_extent());
  }
}

void Pool::wait(Clock::time_point deadline) {
  Row* const row = extents_.owing();
  if (row == nullptr) return;
  RowHeader& header = row->header();
  header.answer_awaited.store(1, std::memory_order_seq_cst);
  const std::uint32_t seen = header.answers.load(std::memory_order_seq_cst);
  const auto left = deadline - Clock::now();
  // The answer may have come between the caller's look and ours.
  if (extents_.owing() == row && left > Clock::duration::zero()) {
    futex_wait(header.answers, seen, left);
  }
  header.answer_awaited.store(0, std::memory_order_seq_cst);
}

void Pool::begin_step(std::uint64_t step) {
  step_ = step;
  step_wait_ns_ = 0;
  asked_blocks_ = 0;
  if (denied_ &&
      (capacity_epoch() != denied_epoch_ || Clock::now() - last_denial_ > kRetryDenied)) {
    denied_ = false;
  }
}

void Pool::processed(std::uint64_t step) noexcept {
  processed_ = step;
  for (std::size_t rank = 0; rank < extents_.ranks(); ++rank) {
    extents_.row(rank).header().processed_step.store(step, std::memory_order_release);
  }
}

void Pool::balance(bool idle) {
  poll();
  answer_pressure();
  const std::uint32_t busy = extents_.usable() - extents_.empty();
  // The slack is for what expect() was not told of a step ahead.
  const std::uint32_t foreseen = busy_at_balance_ + foreseen_;
  slack_.note_growth(busy > foreseen ? busy - foreseen : 0);
  busy_at_balance_ = busy;
  const std::uint64_t now = monotonic_ns();
  slack_.note_busy(busy, now);
  if (idle) {
    slack_.reset();
    expected_blocks_ = refill_blocks_ = asked_blocks_ = demanded_blocks_ = 0;
  }
  const std::uint32_t expected = extents_of(expected_blocks_);
  foreseen_ = expected;
  std::uint32_t target = std::max(slack_.target(), expected);
  const std::uint32_t refill = std::max(target, extents_of(refill_blocks_));
  std::uint32_t keep = std::max(refill, std::min(slack_.lately_busy(busy, now), left_over(busy)));
  // Nothing ahead of need, and nothing left over, while somebody waits for it.
  if (pressed()) target = keep = 0;
  const std::uint32_t ahead = extents_.empty() + extents_.wanted();
  if (ahead < target && !denied_) {
    grow(refill - ahead, refill);
  } else if (extents_.empty() > keep) {
    std::uint32_t excess = extents_.empty() - keep;
    // A busy engine's need goes up and down from step to step; a quarter of the excess a step
    // follows a fall quickly and a ripple hardly.
    const std::uint32_t owed = std::min(excess, pressure_.soft + pressure_.hard);
    std::uint32_t quota = idle ? excess : std::max(owed, (excess + 3) / 4);
    while (quota > 0) {
      const std::uint32_t first = extents_.highest_empty();
      if (first == ExtentTable::kNone) break;
      const Row::Request unit = extents_.unit_of(first);
      if (!may_go(unit) || free_.count() < promised_blocks_ + extents_.blocks_in(unit)) break;
      // A busy engine would ask for the rest of a larger unit again in its next step.
      if (!idle && owed == 0 && unit.count > excess) break;
      withdraw(unit);
      extents_.release(first);
      if (owed != 0) given_ += unit.count;
      excess -= std::min(excess, unit.count);
      quota -= std::min(quota, unit.count);
    }
  }
  publish();
  report();
}

bool Pool::end_step(std::uint32_t expected, std::uint32_t refill, std::uint32_t demanded,
                    std::uint32_t keep_cached) {
  demand(demanded);
  expect(expected, refill);
  balance(false);
  return (pressed() && cached_.size() != 0) || caches_more_than(keep_cached);
}

// Empty extents that may stay because they were in use a moment ago: so many that all there is
// stays below 1.15 times what holds something. Half-empty extents count against it.
std::uint32_t Pool::left_over(std::uint32_t busy) const noexcept {
  const std::uint64_t filled = num_used() + num_cached();
  const std::uint64_t most = filled * 23 / 20 / extents_.blocks_per_extent();
  return most > busy ? static_cast<std::uint32_t>(most) - busy : 0;
}

void Pool::set_limit(std::uint64_t bytes) noexcept {
  limit_bytes_ = bytes;
  for (std::size_t rank = 0; rank < extents_.ranks(); ++rank) {
    Row& row = extents_.row(rank);
    row.header().limit_bytes.store(bytes, std::memory_order_release);
    row.ring_doorbell();
  }
  denied_ = false;
}

bool Pool::denied_recently() const noexcept {
  return last_denial_ != Clock::time_point{} && Clock::now() - last_denial_ < kRecently;
}

std::string Pool::dead_row() const {
  for (std::size_t rank = 0; rank < extents_.ranks(); ++rank) {
    if (!extents_.row(rank).owner_alive()) return extents_.row(rank).path();
  }
  return {};
}

void Pool::poll() {
  if (extents_.pending() == 0) return;
  ExtentTable::Changes changes;
  extents_.poll(&changes);
  for (const Row::Request unit : changes.usable) adopt(unit);
  if (changes.denied) note_denial();
}

void Pool::adopt(Row::Request unit) {
  const std::uint32_t end = extents_.end_block(unit.first + unit.count - 1);
  for (std::uint32_t block = extents_.first_block(unit.first); block < end; ++block) {
    states_[block] = BlockState::free;
    free_.set(block);
  }
  draining_[unit.first] = 0;
}

void Pool::withdraw(Row::Request unit) {
  set_draining(unit, false);
  const std::uint32_t end = extents_.end_block(unit.first + unit.count - 1);
  for (std::uint32_t block = extents_.first_block(unit.first); block < end; ++block) {
    states_[block] = BlockState::absent;
    free_.clear(block);
  }
}

void Pool::grow(std::uint32_t extents, std::uint32_t at_once) {
  std::uint32_t left = std::min(extents, growable_extents());
  while (left > 0) {
    const std::uint32_t taken = extents_.want(left, at_once);
    if (taken == 0) break;
    left -= taken;
  }
}

void Pool::note_denial() {
  denied_ = true;
  denied_epoch_ = capacity_epoch();
  last_denial_ = Clock::now();
}

void Pool::publish() noexcept {
  RowHeader& header = extents_.row(0).header();
  const std::uint32_t kept = std::min(kept_by_engine_, num_used());
  header.used_blocks.store(num_used() - kept, std::memory_order_relaxed);
  header.cached_blocks.store(num_cached() + kept, std::memory_order_relaxed);
  header.free_blocks.store(num_unhashed(), std::memory_order_relaxed);
  header.slack_extents.store(slack_.target(), std::memory_order_relaxed);
}

}  // namespace kvcached
