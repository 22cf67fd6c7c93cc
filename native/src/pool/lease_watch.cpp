#include "kvcached/lease_watch.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "kvcached/futex.hpp"

namespace kvcached {

namespace {

using std::chrono::steady_clock;

// Neighbours that were told answer within a step or at once; telling them more often only costs.
constexpr std::uint64_t kContendAgainNs = 5'000'000;

}  // namespace

Status LeaseWatch::open(const ExtentTable& extents, std::unique_ptr<LeaseWatch>* watch,
                        std::string* error) {
  std::unique_ptr<LeaseWatch> made(new LeaseWatch);
  for (std::size_t rank = 0; rank < extents.ranks(); ++rank) {
    const RowFacts& facts = extents.row(rank).facts();
    if (facts.lease_slot >= kLedgerSlots) return Status::ok;  // accounts to nobody
    Ledger* ledger = nullptr;
    for (const auto& known : made->ledgers_) {
      if (known->path() == facts.ledger) ledger = known.get();
    }
    if (ledger == nullptr) {
      std::unique_ptr<Ledger> found;
      if (const Status status = Ledger::open(facts.ledger, &found, error); status != Status::ok) {
        return status;
      }
      ledger = found.get();
      made->ledgers_.push_back(std::move(found));
    }
    Place place;
    place.table = &ledger->table();
    place.slot = facts.lease_slot;
    place.granules_per_extent =
        std::max<std::uint64_t>(1, facts.extent_bytes / facts.granule_bytes);
    place.bell_seen = slot_of(place).bell.load(std::memory_order_seq_cst);
    made->places_.push_back(place);
  }
  for (Place& place : made->places_) {
    const auto shares = [&place](const Place& other) { return other.table == place.table; };
    place.sharing = static_cast<std::uint64_t>(
        std::count_if(made->places_.begin(), made->places_.end(), shares));
  }
  *watch = std::move(made);
  return Status::ok;
}

std::uint32_t LeaseWatch::grantable() {
  const std::uint64_t now = monotonic_ns();
  std::uint64_t least = std::numeric_limits<std::uint32_t>::max();
  for (const Place& place : places_) {
    const std::uint64_t granules = place.table->grantable(place.slot, now);
    least = std::min(least, granules / (place.granules_per_extent * place.sharing));
  }
  return static_cast<std::uint32_t>(least);
}

std::uint32_t LeaseWatch::reachable() {
  const std::uint64_t now = monotonic_ns();
  std::uint64_t least = std::numeric_limits<std::uint32_t>::max();
  for (const Place& place : places_) {
    const std::uint64_t granules = std::max(place.table->grantable(place.slot, now),
                                            place.table->ruling(place.slot, now).promised);
    least = std::min(least, granules / (place.granules_per_extent * place.sharing));
  }
  return static_cast<std::uint32_t>(least);
}

Pressure LeaseWatch::pressure() {
  const std::uint64_t now = monotonic_ns();
  Pressure most;
  for (const Place& place : places_) {
    const Ruling ruling = place.table->ruling(place.slot, now);
    const auto extents = [&place](std::uint64_t granules) {
      return static_cast<std::uint32_t>((granules + place.granules_per_extent - 1) /
                                        place.granules_per_extent);
    };
    const std::uint64_t trim = slot_of(place).trim.load(std::memory_order_relaxed);
    most.soft = std::max(most.soft, extents(std::max(ruling.soft_pressure, trim)));
    most.hard = std::max(most.hard, extents(ruling.hard_pressure));
  }
  return most;
}

void LeaseWatch::tell(const MemoryUse& use) {
  const std::uint64_t now = monotonic_ns();
  for (const Place& place : places_) {
    LeaseSlot& slot = slot_of(place);
    const auto put = [&place](std::atomic<std::uint64_t>& word, std::uint32_t extents) {
      word.store(extents * place.granules_per_extent, std::memory_order_relaxed);
    };
    put(slot.live, use.live);
    put(slot.cached, use.cached);
    put(slot.slack, use.empty);
    put(slot.leaving, use.leaving);
    put(slot.keep, use.keep);
    place.table->want(place.slot, use.wanted * place.granules_per_extent, now);
  }
  told_ = use;
}

void LeaseWatch::contend() {
  const std::uint64_t now = monotonic_ns();
  if (now - contended_ns_ < kContendAgainNs) return;
  contended_ns_ = now;
  for (const Place& place : places_) place.table->contend(now);
}

void LeaseWatch::gave(std::uint32_t extents) {
  for (const Place& place : places_) {
    LeaseSlot& slot = slot_of(place);
    const std::uint64_t granules = extents * place.granules_per_extent;
    slot.reclaimed.fetch_add(granules, std::memory_order_relaxed);
    const std::uint64_t trim = slot.trim.load(std::memory_order_relaxed);
    if (trim != 0) slot.trim.store(trim - std::min(trim, granules), std::memory_order_relaxed);
  }
}

bool LeaseWatch::has_orders() noexcept {
  bool found = false;
  for (Place& place : places_) {
    place.orders_seen = slot_of(place).orders.load(std::memory_order_acquire);
    found =
        found || place.orders_seen != slot_of(place).orders_done.load(std::memory_order_relaxed);
  }
  return found;
}

void LeaseWatch::orders_done() {
  for (const Place& place : places_) {
    LeaseSlot& slot = slot_of(place);
    if (place.orders_seen == slot.orders_done.load(std::memory_order_relaxed)) continue;
    // What there was to trim is gone; what a later order wants is still to come.
    if (slot.orders.load(std::memory_order_acquire) == place.orders_seen) {
      slot.trim.store(0, std::memory_order_relaxed);
    }
    slot.orders_done_ns.store(monotonic_ns(), std::memory_order_relaxed);
    slot.orders_done.store(place.orders_seen, std::memory_order_release);
    futex_wake(slot.orders_done);
  }
}

std::uint32_t LeaseWatch::epoch() const noexcept {
  std::uint32_t sum = 0;
  for (const auto& ledger : ledgers_) {
    sum += ledger->table().header().epoch.load(std::memory_order_acquire);
  }
  return sum;
}

void LeaseWatch::wait_for_change(std::uint32_t seen, steady_clock::time_point deadline) {
  std::vector<FutexSleep> words;
  for (const auto& ledger : ledgers_) {
    LedgerHeader& header = ledger->table().header();
    header.epoch_awaited.fetch_add(1, std::memory_order_seq_cst);
    words.push_back({&header.epoch, header.epoch.load(std::memory_order_seq_cst)});
  }
  const auto left = deadline - steady_clock::now();
  if (epoch() == seen && left > steady_clock::duration::zero()) futex_wait_any(words, left);
  for (const auto& ledger : ledgers_) {
    ledger->table().header().epoch_awaited.fetch_sub(1, std::memory_order_seq_cst);
  }
}

void LeaseWatch::wait_for_bell(std::chrono::nanoseconds timeout) {
  std::vector<FutexSleep> words;
  bool rung = false;
  for (const Place& place : places_) {
    LeaseSlot& slot = slot_of(place);
    slot.bell_awaited.store(1, std::memory_order_seq_cst);
    words.push_back({&slot.bell, place.bell_seen});
    rung = rung || slot.bell.load(std::memory_order_seq_cst) != place.bell_seen;
  }
  if (!rung) futex_wait_any(words, timeout);
  for (Place& place : places_) {
    LeaseSlot& slot = slot_of(place);
    slot.bell_awaited.store(0, std::memory_order_seq_cst);
    place.bell_seen = slot.bell.load(std::memory_order_seq_cst);
  }
}

void LeaseWatch::ring() {
  if (!places_.empty()) places_.front().table->ring(places_.front().slot);
}

}  // namespace kvcached
