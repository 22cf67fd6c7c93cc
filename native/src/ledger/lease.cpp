#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "kvcached/ledger.hpp"

namespace kvcached {

namespace {

constexpr std::uint32_t kJoinByte = kLedgerSlots;

template <std::size_t kSize>
void put(const std::string& text, char (&field)[kSize]) {
  std::fill(std::begin(field), std::end(field), '\0');
  text.copy(field, kSize - 1);
}

// FNV-1a; names of one ledger are few.
std::uint32_t number_of(const std::string& text) {
  std::uint32_t hash = 2166136261U;
  for (const char letter : text) hash = (hash ^ static_cast<unsigned char>(letter)) * 16777619U;
  return hash;
}

std::uint32_t thousandths(double value) {
  return static_cast<std::uint32_t>(std::lround(std::max(value, 0.001) * 1000));
}

std::string mebibytes(std::uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

// Where guaranteed floors do not fit the device together: who has which. Empty where they do.
std::string floors_too_high(LedgerTable& table, const LeaseTerms& terms) {
  if (!terms.floor_bytes) return {};
  const LedgerHeader& header = table.header();
  const std::uint64_t capacity =
      header.capacity.load(std::memory_order_acquire) * header.granule_bytes;
  std::uint64_t sum = *terms.floor_bytes;
  std::string others;
  const std::uint32_t slots = header.high_water.load(std::memory_order_acquire);
  for (std::uint32_t index = 0; index < slots; ++index) {
    const LeaseSlot& slot = table.slot(index);
    const std::uint64_t floor = slot.floor_bytes.load(std::memory_order_relaxed);
    if (slot.state.load(std::memory_order_acquire) != LeaseState::live ||
        floor == LeaseSlot::kDefaultFloor) {
      continue;
    }
    sum += floor;
    others += (others.empty() ? "" : ", ") + std::string(slot.facts.instance) + " has " +
              mebibytes(floor);
  }
  if (sum <= capacity) return {};
  return "a floor of " + mebibytes(*terms.floor_bytes) + " does not fit into the " +
         mebibytes(capacity) + " that engines on " + header.device + " can hold" +
         (others.empty() ? "" : " (" + others + ")") + "; lower KVCACHED_FLOOR";
}

}  // namespace

Status Lease::join(const std::string& path, const LedgerDevice& id, bool shared,
                   const LeaseTerms& terms, const MemoryInfo& device, std::unique_ptr<Lease>* lease,
                   std::string* error) {
  std::unique_ptr<Lease> made(new Lease);
  // Comes back with the join lock held.
  if (const Status status = Ledger::open_or_create(path, id, shared, &made->ledger_, error);
      status != Status::ok) {
    return status;
  }
  Ledger& ledger = *made->ledger_;
  LedgerTable& table = ledger.table();
  LedgerHeader& header = table.header();
  (void)ledger.sweep();
  std::uint32_t index = 0;
  while (index < kLedgerSlots &&
         (table.slot(index).state.load(std::memory_order_acquire) != LeaseState::empty ||
          ledger.lock_.try_lock(index) != Status::ok)) {
    ++index;
  }
  if (index == kLedgerSlots) {
    *error = path + ": all " + std::to_string(kLedgerSlots) + " leases are taken";
    return Status::out_of_memory;
  }
  LeaseSlot& slot = table.slot(index);
  slot.live = slot.cached = slot.slack = slot.leaving = slot.keep = slot.wanted = 0;
  slot.denials = slot.grants = slot.reclaimed = slot.trim = slot.entitlement = 0;
  slot.backed = slot.reserve = 0;
  slot.moving = slot.orders = slot.orders_done = 0;
  for (auto& bucket : slot.demand.buckets) bucket = 0;
  slot.seen_ns = monotonic_ns();
  slot.longest = (terms.longest_bytes + id.granule_bytes - 1) / id.granule_bytes;
  slot.limit_bytes = terms.limit_bytes;
  slot.floor_bytes = terms.floor_bytes.value_or(LeaseSlot::kDefaultFloor);
  slot.weight_thousandths = thousandths(terms.weight);
  slot.utilisation_thousandths = std::min(thousandths(terms.utilisation), 1000U);
  slot.device_limit_bytes = terms.device_limit_bytes;
  slot.facts = LeaseFacts{};
  put(terms.group, slot.facts.group);
  put(terms.instance, slot.facts.instance);
  put(terms.engine, slot.facts.engine);
  put(terms.row, slot.facts.row);
  slot.facts.group_id = number_of(terms.group);
  slot.facts.pid = static_cast<std::uint32_t>(getpid());
  slot.facts.user = getuid();
  slot.facts.rank = terms.rank;
  slot.facts.joined_ns = slot.seen_ns;
  slot.facts.virtual_bytes = terms.virtual_bytes;
  slot.facts.extent_bytes = terms.extent_bytes;
  // A group's bound is the group's, whoever joins it later.
  slot.group_limit_bytes = 0;
  const std::uint32_t slots = header.high_water.load(std::memory_order_acquire);
  for (std::uint32_t other = 0; other < slots; ++other) {
    if (table.slot(other).state.load(std::memory_order_acquire) == LeaseState::live &&
        table.slot(other).facts.group_id == slot.facts.group_id) {
      slot.group_limit_bytes = table.slot(other).group_limit_bytes.load();
    }
  }
  std::uint32_t high = slots;
  while (high < index + 1 && !header.high_water.compare_exchange_weak(high, index + 1)) {
  }
  made->slot_ = index;
  made->granule_bytes_ = id.granule_bytes;
  slot.state.store(LeaseState::live, std::memory_order_release);
  const std::uint64_t now = monotonic_ns();
  if (const auto sample = ledger.begin_sample()) ledger.end_sample(*sample, device, now);
  // Its own floor is not among those that it must fit beside.
  slot.floor_bytes = LeaseSlot::kDefaultFloor;
  const std::string refusal = floors_too_high(table, terms);
  slot.floor_bytes = terms.floor_bytes.value_or(LeaseSlot::kDefaultFloor);
  ledger.lock_.unlock(kJoinByte);
  if (!refusal.empty()) {
    *error = refusal;
    return Status::out_of_memory;  // ~Lease leaves
  }
  *lease = std::move(made);
  return Status::ok;
}

Lease::~Lease() { leave(); }

void Lease::leave() {
  if (slot_ == kNoSlot) return;
  // In a forked child the file is closed and the lease is its parent's.
  if (ledger_->mapped_by_ == getpid()) {
    ledger_->clear(slot_);
    ledger_->lock_.unlock(slot_);
    (void)ledger_->remove_if_unused();
  }
  slot_ = kNoSlot;
}

Grant Lease::resize(std::uint64_t bytes) {
  LedgerTable& table = ledger_->table();
  const std::uint64_t granules = bytes / granule_bytes_ + (bytes % granule_bytes_ != 0 ? 1 : 0);
  const std::uint64_t now = monotonic_ns();
  const Grant answer = table.resize(slot_, granules, now);
  if (answer == Grant::no_capacity || answer == Grant::promised) {
    // What is asked for is wanted, whatever the scheduler has told so far.
    table.want(slot_, std::max(granules, table.slot(slot_).live.load()), now);
    table.contend(now);
  }
  return answer;
}

Grant Lease::charge(std::uint64_t bytes) {
  LedgerTable& table = ledger_->table();
  const std::uint64_t granules = bytes / granule_bytes_ + (bytes % granule_bytes_ != 0 ? 1 : 0);
  const std::uint64_t now = monotonic_ns();
  const Grant answer = table.resize(slot_, granules, now);
  if ((answer == Grant::no_capacity || answer == Grant::promised) &&
      table.wanted(slot_, now) >= granules) {
    table.contend(now);
  }
  return answer;
}

void Lease::begin_move() noexcept {
  ledger_->table().slot(slot_).moving.fetch_add(1, std::memory_order_acq_rel);
}

void Lease::end_move(std::uint64_t backed_bytes) noexcept {
  LeaseSlot& slot = ledger_->table().slot(slot_);
  slot.backed.store(backed_bytes / granule_bytes_, std::memory_order_release);
  slot.moving.fetch_add(1, std::memory_order_acq_rel);
}

void Lease::reserve(std::uint64_t bytes) noexcept {
  const std::uint64_t granules = (bytes + granule_bytes_ - 1) / granule_bytes_;
  ledger_->table().slot(slot_).reserve.store(granules, std::memory_order_release);
}

void Lease::seen() noexcept {
  ledger_->table().slot(slot_).seen_ns.store(monotonic_ns(), std::memory_order_relaxed);
}

}  // namespace kvcached
