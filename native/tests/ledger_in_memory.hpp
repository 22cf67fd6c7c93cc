#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "kvcached/ledger_table.hpp"

namespace kvcached {

// Debug builds and sanitizers are up to fifty times slower: there, randomised tests do less.
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
inline constexpr bool kFast = true;
#else
inline constexpr bool kFast = false;
#endif

/// A ledger's memory without a file, one byte a granule, so that a test can have thousands of them
/// and keep the time itself.
class LedgerInMemory {
 public:
  explicit LedgerInMemory(std::uint64_t capacity) {
    header.granule_bytes = 1;
    header.capacity = capacity;
  }

  /// What Lease::join does to a slot. A floor of nothing: tests that want one say so.
  LeaseSlot& join(std::uint32_t index, double weight = 1.0, std::uint64_t floor = 0) {
    LeaseSlot& slot = slots[index];
    slot.live = slot.cached = slot.slack = slot.leaving = slot.keep = slot.wanted = 0;
    slot.longest = 0;
    for (auto& bucket : slot.demand.buckets) bucket = 0;
    slot.limit_bytes = slot.group_limit_bytes = 0;
    slot.floor_bytes = floor;
    slot.weight_thousandths = static_cast<std::uint32_t>(weight * 1000);
    slot.facts.group_id = index;
    if (header.high_water < index + 1) header.high_water = index + 1;
    slot.state = LeaseState::live;
    return slot;
  }
  /// What Ledger::sweep and Lease::leave do to a slot.
  void clear(std::uint32_t index, std::uint64_t now_ns) {
    (void)table.resize(index, 0, now_ns);
    slots[index].state = LeaseState::empty;
    table.changed();
  }
  /// What Lease::resize does: a refusal tells the neighbours.
  Grant ask(std::uint32_t index, std::uint64_t granules, std::uint64_t now_ns) {
    const Grant answer = table.resize(index, granules, now_ns);
    if (answer == Grant::no_capacity || answer == Grant::promised) {
      table.want(index, granules, now_ns);
      table.contend(now_ns);
    }
    return answer;
  }
  /// Holds so much, all of it in blocks in use.
  void use(std::uint32_t index, std::uint64_t granules, std::uint64_t now_ns) {
    (void)table.resize(index, granules, now_ns);
    slots[index].live = granules;
    table.want(index, granules, now_ns);
  }
  /// Pretends that so many operations have happened.
  void set_sequence(std::uint64_t sequence) {
    LedgerWord word = LedgerWord::unpack(header.word);
    word.slot = kNoSlot;
    word.sequence = sequence & LedgerWord::kSequenceMask;
    header.word = word.pack();
  }

  LedgerHeader header;
  std::array<LeaseSlot, kLedgerSlots> slots;
  LedgerTable table{&header, slots.data()};
};

/// What a reader finds who helps the last operation to finish, without touching anything.
struct Accounts {
  std::uint64_t used = 0;
  std::uint64_t sum = 0;
  std::uint64_t most = 0;

  static Accounts of(const LedgerInMemory& ledger) {
    const LedgerWord word = LedgerWord::unpack(ledger.header.word);
    Accounts found{.used = word.used};
    for (std::uint32_t index = 0; index < ledger.header.high_water; ++index) {
      const LeaseSlot& slot = ledger.slots[index];
      LedgerEntry entry = LedgerEntry::unpack(slot.held);
      const LedgerEntry intent = LedgerEntry::unpack(slot.intent);
      if (index == word.slot && entry.sequence != word.sequence &&
          intent.sequence == word.sequence) {
        entry = intent;
      }
      found.sum += entry.granules;
      found.most = entry.granules > found.most ? entry.granules : found.most;
    }
    return found;
  }
};

}  // namespace kvcached
