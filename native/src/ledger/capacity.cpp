#include <algorithm>

#include "kvcached/ledger.hpp"

namespace kvcached {

namespace {

// A change by less than this part of the capacity is the noise of a running machine.
constexpr std::uint64_t kNoise = 1024;

// What all leases together may hold, in bytes: what is free and what they hold already, less what
// they will want beside their caches and the share of the device that nobody may use.
std::uint64_t capacity_bytes(LedgerTable& table, std::uint64_t backed_bytes,
                             const MemoryInfo& device) {
  const LedgerHeader& header = table.header();
  std::uint64_t reserve = 0;
  std::uint64_t device_limit = ~std::uint64_t{0};
  std::uint32_t utilisation = 1000;
  const std::uint32_t slots = header.high_water.load(std::memory_order_acquire);
  for (std::uint32_t index = 0; index < slots; ++index) {
    const LeaseSlot& slot = table.slot(index);
    if (slot.state.load(std::memory_order_acquire) != LeaseState::live) continue;
    reserve += slot.reserve.load(std::memory_order_relaxed) * header.granule_bytes;
    const std::uint32_t share = slot.utilisation_thousandths.load(std::memory_order_relaxed);
    if (share != 0) utilisation = std::min(utilisation, share);
    const std::uint64_t limit = slot.device_limit_bytes.load(std::memory_order_relaxed);
    if (limit != 0) device_limit = std::min(device_limit, limit);
  }
  const std::uint64_t unused = device.total / 1000 * (1000 - utilisation);
  const std::uint64_t there = device.free + backed_bytes;
  const std::uint64_t apart = reserve + unused;
  return std::min(there > apart ? there - apart : 0, device_limit);
}

}  // namespace

std::optional<Ledger::Sample> Ledger::begin_sample() {
  Sample sample;
  sample.word = table_->header().word.load(std::memory_order_acquire);
  const std::uint32_t slots = table_->header().high_water.load(std::memory_order_acquire);
  for (std::uint32_t index = 0; index < slots; ++index) {
    const LeaseSlot& slot = table_->slot(index);
    if (slot.state.load(std::memory_order_acquire) != LeaseState::live) continue;
    sample.backed += slot.backed.load(std::memory_order_acquire);
    const std::uint32_t moving = slot.moving.load(std::memory_order_acquire);
    if (moving % 2 != 0) return std::nullopt;
    sample.moves += moving;
  }
  return sample;
}

bool Ledger::sample_due(std::uint64_t age_ns, std::uint64_t now_ns) {
  std::uint64_t last = table_->header().sampled_ns.load(std::memory_order_acquire);
  if (last != 0 && last <= now_ns && now_ns - last < age_ns) return false;
  return table_->header().sampled_ns.compare_exchange_strong(last, now_ns,
                                                             std::memory_order_acq_rel);
}

void Ledger::end_sample(const Sample& sample, const MemoryInfo& device, std::uint64_t now_ns) {
  LedgerHeader& header = table_->header();
  if (begin_sample() != sample) return;
  header.sampled_ns.store(now_ns, std::memory_order_release);
  header.device_free.store(device.free, std::memory_order_relaxed);
  header.device_total.store(device.total, std::memory_order_relaxed);
  const std::uint64_t seen =
      capacity_bytes(*table_, sample.backed * header.granule_bytes, device) / header.granule_bytes;
  const std::uint64_t known = header.capacity.load(std::memory_order_acquire);
  const std::uint64_t higher = header.higher_capacity.exchange(seen, std::memory_order_acq_rel);
  if (seen > known) {
    // The first look ever is the only one there is.
    const std::uint64_t confirmed = known == 0 ? seen : std::min(higher, seen);
    if (confirmed > known + known / kNoise) table_->set_capacity(confirmed);
  } else if (seen + known / kNoise < known) {
    table_->set_capacity(seen);
  }
  if (table_->used() > header.capacity.load(std::memory_order_acquire)) table_->contend(now_ns);
}

}  // namespace kvcached
