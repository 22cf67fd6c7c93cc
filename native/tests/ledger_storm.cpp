#include "ledger_storm.hpp"

#include <algorithm>
#include <utility>

namespace kvcached {

namespace {

LedgerStorm* g_storm = nullptr;
constexpr std::uint64_t kSecond = 1'000'000'000;

}  // namespace

LedgerStorm::LedgerStorm(std::uint64_t seed)
    : dice_(seed),
      most_(dice_.between(40, 400)),
      ledger_(most_),
      device_({.capacity_bytes = most_ * kGranule, .granularity = kGranule}),
      now_(100 * kSecond),
      kill_permille_(dice_.chance(30) ? 0 : dice_.between(1, 12)),
      stop_permille_(dice_.chance(50) ? 0 : dice_.between(1, 5)),
      switch_percent_(dice_.between(20, 100)) {
  (void)device_.probe();
  // Some schedules run through the end of the sequence.
  if (dice_.chance(30)) ledger_.set_sequence(LedgerWord::kSequenceMask - dice_.between(0, 200));
  last_word_ = ledger_.header.word;
  highest_capacity_ = most_;
  g_storm = this;
  LedgerTable::set_probe([](const char* where) { g_storm->visit(where); });
}

LedgerStorm::~LedgerStorm() {
  // Who stands still in the middle of an operation dies there, so that its stack unwinds.
  kill_permille_ = 1000;
  raging_ = true;
  for (Process& process : processes_) {
    if (process.fiber == nullptr || process.fiber->ended()) continue;
    process.dead = true;
    running_ = &process;
    process.fiber->resume();
  }
  LedgerTable::set_probe(nullptr);
}

void LedgerStorm::fail(std::string text) {
  if (failure_.empty()) failure_ = std::move(text);
}

// Every access to shared state comes through here.
void LedgerStorm::visit(const char* where) {
  check(where);
  if (running_ == nullptr) return;
  Process& process = *running_;
  if (process.dead) throw Killed{};
  if (raging_) {
    if (kill_permille_ != 0 && dice_.between(1, 1000) <= kill_permille_) throw Killed{};
    if (stop_permille_ != 0 && kFibers && dice_.between(1, 1000) <= stop_permille_) {
      process.stopped_until = now_ + dice_.between(1, 3000) * kMillisecond;
      ++stops_;
    }
  }
  if (Fiber::current() == nullptr) return;
  if (process.stopped_until <= now_ && !dice_.chance(switch_percent_)) return;
  ++switches_;
  Fiber::yield();
  // The world has gone on meanwhile, perhaps to its end.
  if (process.dead) throw Killed{};
  check(where);
}

void LedgerStorm::check(const char* where) {
  const Accounts accounts = Accounts::of(ledger_);
  if (accounts.used != accounts.sum) {
    fail(std::string("at '") + where + "': used is " + std::to_string(accounts.used) +
         ", the accounts hold " + std::to_string(accounts.sum));
  }
  // Below zero is far above everything.
  if (accounts.most > most_ || accounts.used > most_) fail("an account exceeds the device");
  if (device_.created_bytes() > accounts.used * kGranule) fail("memory exists that nobody holds");
  const std::uint64_t bits = ledger_.header.word;
  const std::uint64_t capacity = ledger_.header.capacity;
  if (bits == last_word_) {
    // Whoever swaps this word has read the capacity while it stood.
    highest_capacity_ = std::max(highest_capacity_, capacity);
    return;
  }
  const LedgerWord before = LedgerWord::unpack(last_word_);
  const LedgerWord after = LedgerWord::unpack(bits);
  if (after.sequence != ((before.sequence + 1) & LedgerWord::kSequenceMask)) {
    fail("two operations between two looks");
  }
  if (after.used > before.used) {
    if (after.used > std::max(highest_capacity_, capacity)) {
      fail("granted " + std::to_string(after.used) + " of " + std::to_string(highest_capacity_));
    }
    const LeaseSlot& slot = ledger_.slots[after.slot];
    const std::uint64_t limit = slot.limit_bytes;
    const std::uint64_t held = LedgerEntry::unpack(slot.intent).granules;
    if (limit != 0 && held > limit) fail("granted above a limit");
    if (const std::uint64_t group = slot.group_limit_bytes; group != 0) {
      std::uint64_t sum = held;
      for (std::uint32_t other = 0; other < ledger_.header.high_water; ++other) {
        const LeaseSlot& member = ledger_.slots[other];
        if (other == after.slot || member.state != LeaseState::live) continue;
        if (member.facts.group_id != slot.facts.group_id) continue;
        sum += LedgerEntry::unpack(member.held).granules;
      }
      if (sum > group) fail("granted above a group's limit");
    }
  }
  last_word_ = bits;
  highest_capacity_ = capacity;
}

void LedgerStorm::start(Process& process) {
  process = Process{};
  if (!kFibers) return;
  process.fiber = std::make_unique<Fiber>([this, &process] {
    try {
      while (!process.dead) {
        operate(process);
        Fiber::yield();
      }
    } catch (const Killed&) {
      die(process);
    }
  });
}

// Lets a process go on to its next access that another may come between.
void LedgerStorm::advance(Process& process) {
  running_ = &process;
  if (process.fiber != nullptr) {
    process.fiber->resume();
  } else {
    try {
      operate(process);
    } catch (const Killed&) {
      die(process);
    }
  }
  running_ = nullptr;
}

// The kernel takes the memory and drops the locks; the account stays as it is.
void LedgerStorm::die(Process& process) {
  process.dead = true;
  process.sweeping = kNoSlot;
  for (const Process::Memory& piece : process.memory) {
    (void)device_.destroy(piece.handle, piece.granules * kGranule);
  }
  process.memory.clear();
  ++deaths_;
}

bool LedgerStorm::locked(std::uint32_t slot) const {
  return std::any_of(processes_.begin(), processes_.end(), [slot](const Process& process) {
    return !process.dead && (process.slot == slot || process.sweeping == slot);
  });
}

void LedgerStorm::rage(int operations) {
  raging_ = true;
  for (Process& process : processes_) start(process);
  const auto last = static_cast<std::uint32_t>(processes_.size() - 1);
  while (operations > 0 && failure_.empty()) {
    Process& process = processes_[dice_.between(0, last)];
    if (process.dead) {
      // Another process takes its place; the lease waits for somebody to sweep it.
      if (dice_.chance(20)) start(process);
      now_ += 100 * 1000;
      continue;
    }
    if (process.stopped_until > now_) {
      now_ += dice_.between(0, 1000) * 1000;
      continue;
    }
    const bool began = !process.within_operation;
    advance(process);
    if (began) {
      --operations;
      now_ += dice_.between(0, dice_.chance(5) ? 400'000 : 2000) * 1000;
    }
  }
  raging_ = false;
}

void LedgerStorm::calm_down() {
  for (Process& process : processes_) {
    while (failure_.empty() && !process.dead && process.within_operation &&
           process.stopped_until <= now_) {
      advance(process);
    }
  }
  Process sweeper;
  running_ = nullptr;
  sweep(sweeper);
  std::vector<std::uint64_t> held;
  const std::uint64_t used = ledger_.table.snapshot(&held);
  std::uint64_t sum = 0;
  for (const std::uint64_t granules : held) sum += granules;
  if (used != sum) fail("a snapshot does not add up");
  for (const Process& process : processes_) {
    if (process.dead || process.slot == kNoSlot || process.within_operation) continue;
    if (held[process.slot] != process.held) fail("an account is not what its owner was granted");
  }
  for (std::uint32_t slot = 0; slot < held.size(); ++slot) {
    if (held[slot] != 0 && !locked(slot)) fail("a dead lease still holds memory");
  }
}

}  // namespace kvcached
