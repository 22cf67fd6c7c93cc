#include "kvcached/ledger_table.hpp"

#include <algorithm>

#include "kvcached/futex.hpp"

namespace kvcached {

namespace {

std::atomic<LedgerTable::Probe> g_probe{nullptr};

inline void probe(const char* where) {
  if (const LedgerTable::Probe found = g_probe.load(std::memory_order_relaxed)) found(where);
}

constexpr std::uint64_t next(std::uint64_t sequence) noexcept {
  return (sequence + 1) & LedgerWord::kSequenceMask;
}

}  // namespace

void LedgerTable::set_probe(Probe found) noexcept { g_probe = found; }

void LedgerTable::help(LedgerWord word) {
  if (word.slot >= kLedgerSlots) return;
  LeaseSlot& slot = slots_[word.slot];
  probe("account");
  std::uint64_t held = slot.held.load(std::memory_order_acquire);
  if (LedgerEntry::unpack(held).sequence == word.sequence) return;
  probe("another's intent");
  const LedgerEntry intent = LedgerEntry::unpack(slot.intent.load(std::memory_order_acquire));
  // Another number: somebody has helped, and the lease has gone on.
  if (intent.sequence != word.sequence) return;
  probe("held");
  slot.held.compare_exchange_strong(held, intent.pack(), std::memory_order_acq_rel);
}

LedgerWord LedgerTable::settled() {
  probe("word");
  const LedgerWord word = LedgerWord::unpack(header_->word.load(std::memory_order_acquire));
  help(word);
  return word;
}

Grant LedgerTable::resize(std::uint32_t index, std::uint64_t granules, std::uint64_t now_ns) {
  LeaseSlot& slot = slots_[index];
  for (;;) {
    const LedgerWord word = settled();
    probe("own account");
    const LedgerEntry held = LedgerEntry::unpack(slot.held.load(std::memory_order_acquire));
    if (granules == held.granules) return Grant::granted;
    if (granules > held.granules) {
      const Grant answer = may_grow(index, held.granules, granules, word, now_ns);
      if (answer != Grant::granted) {
        slot.denials.fetch_add(1, std::memory_order_relaxed);
        return answer;
      }
    }
    LedgerWord after{word.used - held.granules + granules, index, next(word.sequence)};
    // A lease that moved exactly one turn of the sequence ago would look as if this operation had
    // been finished already: let the number pass.
    const bool ambiguous = after.sequence == held.sequence;
    if (ambiguous) after = {word.used, kNoSlot, after.sequence};
    if (!ambiguous) {
      probe("intent");
      slot.intent.store(LedgerEntry{granules, after.sequence}.pack(), std::memory_order_release);
    }
    probe("commit");
    std::uint64_t expected = word.pack();
    if (!header_->word.compare_exchange_strong(expected, after.pack(), std::memory_order_acq_rel)) {
      continue;
    }
    if (ambiguous) continue;
    help(after);
    if (granules < held.granules) {
      // Nobody waits while nothing is contended, and a wake-up is a system call.
      if (header_->contended.load(std::memory_order_acquire) != 0) changed();
    } else {
      slot.grants.fetch_add(1, std::memory_order_relaxed);
    }
    return Grant::granted;
  }
}

Grant LedgerTable::may_grow(std::uint32_t index, std::uint64_t held, std::uint64_t wanted,
                            LedgerWord word, std::uint64_t now_ns) {
  const LeaseSlot& slot = slots_[index];
  const std::uint64_t limit = slot.limit_bytes.load(std::memory_order_acquire);
  if (limit != 0 && wanted > granules(limit)) return Grant::over_limit;
  const std::uint64_t more = wanted - held;
  if (const std::uint64_t group = slot.group_limit_bytes.load(std::memory_order_acquire);
      group != 0) {
    probe("group");
    std::uint64_t sum = more;
    const std::uint32_t slots = header_->high_water.load(std::memory_order_acquire);
    for (std::uint32_t other = 0; other < slots; ++other) {
      if (slots_[other].facts.group_id != slot.facts.group_id ||
          slots_[other].state.load(std::memory_order_acquire) != LeaseState::live) {
        continue;
      }
      sum += LedgerEntry::unpack(slots_[other].held.load(std::memory_order_acquire)).granules;
    }
    if (sum > granules(group)) return Grant::over_limit;
  }
  // After the word: who lowers the capacity changes the word behind it, and our swap then fails.
  probe("capacity");
  const std::uint64_t capacity = header_->capacity.load(std::memory_order_acquire);
  if (word.used + more > std::min(capacity, LedgerWord::kMostGranules)) return Grant::no_capacity;
  if (header_->contended.load(std::memory_order_acquire) == 0) return Grant::granted;

  thread_local std::vector<Tenant> tenants;
  thread_local std::vector<Ruling> rulings;
  judge(now_ns, &tenants, &rulings);
  if (wanted <= rulings[index].entitlement) return Grant::granted;
  std::uint64_t promised = 0;
  for (std::uint32_t other = 0; other < rulings.size(); ++other) {
    if (other != index) promised += rulings[other].promised;
  }
  const std::uint64_t free = capacity - word.used;
  return free >= promised && free - promised >= more ? Grant::granted : Grant::promised;
}

std::uint64_t LedgerTable::held(std::uint32_t slot) {
  (void)settled();
  return LedgerEntry::unpack(slots_[slot].held.load(std::memory_order_acquire)).granules;
}

std::uint64_t LedgerTable::used() const noexcept {
  return LedgerWord::unpack(header_->word.load(std::memory_order_acquire)).used;
}

std::uint64_t LedgerTable::snapshot(std::vector<std::uint64_t>* held) {
  for (;;) {
    const LedgerWord word = settled();
    const std::uint32_t slots = header_->high_water.load(std::memory_order_acquire);
    held->assign(slots, 0);
    for (std::uint32_t index = 0; index < slots; ++index) {
      probe("account");
      (*held)[index] =
          LedgerEntry::unpack(slots_[index].held.load(std::memory_order_acquire)).granules;
    }
    probe("word");
    if (header_->word.load(std::memory_order_acquire) == word.pack()) return word.used;
  }
}

void LedgerTable::set_capacity(std::uint64_t granules) {
  probe("new capacity");
  // Where it is this already, whoever stored it may have died before it changed the word.
  const std::uint64_t before = header_->capacity.exchange(granules, std::memory_order_acq_rel);
  for (;;) {
    const LedgerWord word = settled();
    const LedgerWord after{word.used, kNoSlot, next(word.sequence)};
    probe("commit");
    std::uint64_t expected = word.pack();
    if (header_->word.compare_exchange_strong(expected, after.pack(), std::memory_order_acq_rel)) {
      break;
    }
  }
  if (granules > before) changed();
}

void LedgerTable::changed() {
  header_->epoch.fetch_add(1, std::memory_order_seq_cst);
  if (header_->epoch_awaited.load(std::memory_order_seq_cst) != 0) futex_wake(header_->epoch);
}

void LedgerTable::ring(std::uint32_t index) {
  LeaseSlot& slot = slots_[index];
  slot.bell.fetch_add(1, std::memory_order_seq_cst);
  if (slot.bell_awaited.load(std::memory_order_seq_cst) != 0) futex_wake(slot.bell);
}

}  // namespace kvcached
