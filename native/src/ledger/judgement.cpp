#include <algorithm>

#include "kvcached/ledger_table.hpp"

namespace kvcached {

namespace {

constexpr std::uint64_t kLow32 = 0xffffffffU;
constexpr std::uint64_t kMillisecond = 1'000'000;
// A need that its owner has not repeated for this long is over, or its owner is stopped.
constexpr std::uint64_t kBelievedMs = 300;
// A pager that lives looks after its lease every half second.
constexpr std::uint64_t kStalledNs = 3'000'000'000;

std::uint64_t wanted_now(const LeaseSlot& slot, std::uint64_t now_ns) noexcept {
  const std::uint64_t bits = slot.wanted.load(std::memory_order_relaxed);
  const std::uint64_t age = ((now_ns / kMillisecond) - bits) & kLow32;
  // Half the range back is a time that has not come yet: another thread's clock, read later.
  return age < kBelievedMs || age > kLow32 / 2 ? bits >> 32 : 0;
}

}  // namespace

Tenant LedgerTable::tenant_of(const LeaseSlot& slot, std::uint64_t now_ns,
                              std::uint64_t default_floor) const noexcept {
  Tenant tenant;
  tenant.held = LedgerEntry::unpack(slot.held.load(std::memory_order_acquire)).granules;
  tenant.live = std::min(slot.live.load(std::memory_order_relaxed), tenant.held);
  tenant.keep = slot.keep.load(std::memory_order_relaxed);
  // Nothing can be had from an owner that has been stopped: who counts on it waits for ever.
  const std::uint64_t seen = slot.seen_ns.load(std::memory_order_relaxed);
  if (seen != 0 && now_ns > seen && now_ns - seen > kStalledNs) {
    tenant.live = tenant.held;
    tenant.keep = tenant.held;
  }
  tenant.leaving = slot.leaving.load(std::memory_order_relaxed);
  tenant.wanted = std::max(wanted_now(slot, now_ns), tenant.live);
  tenant.demand = std::max(slot.demand.peak(now_ns), tenant.wanted);
  if (const std::uint64_t limit = slot.limit_bytes.load(std::memory_order_relaxed); limit != 0) {
    tenant.limit = granules(limit);
  }
  if (const std::uint64_t limit = slot.group_limit_bytes.load(std::memory_order_relaxed);
      limit != 0) {
    tenant.group_limit = granules(limit);
  }
  const std::uint64_t floor = slot.floor_bytes.load(std::memory_order_relaxed);
  tenant.floor = floor == LeaseSlot::kDefaultFloor
                     ? std::min(slot.longest.load(std::memory_order_relaxed), default_floor)
                     : granules(floor + header_->granule_bytes - 1);
  tenant.weight = slot.weight_thousandths.load(std::memory_order_relaxed) / 1000.0;
  tenant.group = slot.facts.group_id;
  return tenant;
}

std::uint64_t LedgerTable::judge(std::uint64_t now_ns, std::vector<Tenant>* tenants,
                                 std::vector<Ruling>* rulings) {
  const std::uint32_t slots = header_->high_water.load(std::memory_order_acquire);
  const std::uint64_t capacity = header_->capacity.load(std::memory_order_acquire);
  std::uint32_t living = 0;
  for (std::uint32_t index = 0; index < slots; ++index) {
    if (slots_[index].state.load(std::memory_order_acquire) == LeaseState::live) ++living;
  }
  const std::uint64_t share = capacity / std::max(living, 1U);
  tenants->assign(slots, Tenant{});
  rulings->assign(slots, Ruling{});
  for (std::uint32_t index = 0; index < slots; ++index) {
    if (slots_[index].state.load(std::memory_order_acquire) == LeaseState::live) {
      (*tenants)[index] = tenant_of(slots_[index], now_ns, share);
    } else {
      (*tenants)[index].weight = 0;
    }
  }
  if (header_->policy[0] == '\0') {
    entitle(*tenants, capacity, *rulings);
  } else {
    for (std::uint32_t index = 0; index < slots; ++index) {
      (*rulings)[index].entitlement = slots_[index].entitlement.load(std::memory_order_acquire);
    }
  }
  press(*tenants, capacity, *rulings);
  return capacity;
}

void LedgerTable::judge_all(std::uint64_t now_ns, std::vector<Tenant>* tenants,
                            std::vector<Ruling>* rulings) {
  (void)settled();
  (void)judge(now_ns, tenants, rulings);
}

std::uint64_t LedgerTable::grantable(std::uint32_t index, std::uint64_t now_ns) {
  const LeaseSlot& slot = slots_[index];
  const LedgerWord word = settled();
  const std::uint64_t held =
      LedgerEntry::unpack(slot.held.load(std::memory_order_acquire)).granules;
  const std::uint64_t capacity = header_->capacity.load(std::memory_order_acquire);
  const std::uint64_t free = capacity > word.used ? capacity - word.used : 0;
  std::uint64_t room = kNoLimit;
  if (const std::uint64_t limit = slot.limit_bytes.load(std::memory_order_acquire); limit != 0) {
    room = granules(limit) > held ? granules(limit) - held : 0;
  }
  const bool contended = header_->contended.load(std::memory_order_acquire) != 0;
  if (!contended && !bounded_by_group(slot)) return std::min(free, room);
  thread_local std::vector<Tenant> tenants;
  thread_local std::vector<Ruling> rulings;
  judge(now_ns, &tenants, &rulings);
  std::uint64_t promised = 0;
  std::uint64_t group_held = 0;
  for (std::uint32_t other = 0; other < rulings.size(); ++other) {
    if (other != index) promised += rulings[other].promised;
    if (tenants[other].weight > 0 && tenants[other].group == tenants[index].group) {
      group_held += tenants[other].held;
    }
  }
  const Tenant& tenant = tenants[index];
  if (tenant.group_limit != kNoLimit) {
    room = std::min(room, tenant.group_limit > group_held ? tenant.group_limit - group_held : 0);
  }
  if (!contended) return std::min(free, room);
  const std::uint64_t unpromised = free > promised ? free - promised : 0;
  return std::min(room, std::max(unpromised, std::min(free, rulings[index].promised)));
}

Ruling LedgerTable::ruling(std::uint32_t index, std::uint64_t now_ns) {
  const LeaseSlot& slot = slots_[index];
  const std::uint32_t contended = header_->contended.load(std::memory_order_acquire);
  const std::uint64_t limit = slot.limit_bytes.load(std::memory_order_acquire);
  const bool over =
      limit != 0 &&
      LedgerEntry::unpack(slot.held.load(std::memory_order_acquire)).granules > granules(limit);
  if (contended == 0 && !over && !bounded_by_group(slot)) return {};
  (void)settled();
  thread_local std::vector<Tenant> tenants;
  thread_local std::vector<Ruling> rulings;
  const std::uint64_t capacity = judge(now_ns, &tenants, &rulings);
  // Who got its part and would have more still waits: what others free must stay theirs while
  // they may want it back. Demand is a peak, so this is a second without a need unmet.
  bool calm = used() <= capacity;
  for (std::size_t other = 0; other < tenants.size(); ++other) {
    const Tenant& tenant = tenants[other];
    calm = calm && rulings[other].promised == 0 &&
           std::min({tenant.demand, tenant.limit, tenant.group_limit}) <= tenant.held;
  }
  if (contended != 0 && calm) {
    std::uint32_t seen = contended;
    header_->contended.compare_exchange_strong(seen, 0, std::memory_order_acq_rel);
  }
  return rulings[index];
}

void LedgerTable::want(std::uint32_t index, std::uint64_t granules, std::uint64_t now_ns) {
  LeaseSlot& slot = slots_[index];
  granules = std::min(granules, LedgerWord::kMostGranules);
  slot.demand.note(granules, now_ns);
  slot.wanted.store((granules << 32) | ((now_ns / kMillisecond) & kLow32),
                    std::memory_order_relaxed);
}

std::uint64_t LedgerTable::wanted(std::uint32_t index, std::uint64_t now_ns) const noexcept {
  return wanted_now(slots_[index], now_ns);
}

void LedgerTable::contend(std::uint64_t now_ns) {
  std::uint32_t seen = header_->contended.load(std::memory_order_acquire);
  std::uint32_t next = seen + 1;
  while (!header_->contended.compare_exchange_weak(seen, next == 0 ? 1 : next,
                                                   std::memory_order_acq_rel)) {
    next = seen + 1;
  }
  header_->contended_ns.store(now_ns, std::memory_order_relaxed);
  std::vector<Tenant> tenants;
  std::vector<Ruling> rulings;
  judge_all(now_ns, &tenants, &rulings);
  for (std::uint32_t index = 0; index < rulings.size(); ++index) {
    if (rulings[index].soft_pressure + rulings[index].hard_pressure != 0) ring(index);
  }
}

}  // namespace kvcached
