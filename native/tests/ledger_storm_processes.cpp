// What the processes of a LedgerStorm do.

#include <algorithm>

#include "ledger_storm.hpp"

namespace kvcached {

void LedgerStorm::operate(Process& process) {
  process.within_operation = true;
  const auto index = static_cast<std::size_t>(&process - processes_.data());
  if (task_) {
    task_(process);
  } else if (index == kTenants) {
    ledger_.table.set_capacity(
        dice_.chance(50) ? most_ : dice_.between(10, static_cast<std::uint32_t>(most_)));
    // In force for every grant that comes now. Nobody else changes it.
    check("the capacity's change");
    highest_capacity_ = ledger_.header.capacity;
    ledger_.table.contend(now_);
  } else if (index > kTenants) {
    if (dice_.chance(50)) {
      observe();
    } else {
      sweep(process);
    }
  } else if (process.slot == kNoSlot) {
    join(process);
  } else {
    const std::uint32_t most = static_cast<std::uint32_t>(most_);
    LeaseSlot& slot = ledger_.slots[process.slot];
    const std::uint32_t turn = dice_.between(1, 100);
    if (turn <= 35) {
      grow(process, process.held + dice_.between(1, most / 4), dice_.chance(70));
    } else if (turn <= 60) {
      shrink(process, dice_.between(0, static_cast<std::uint32_t>(process.held)));
    } else if (turn <= 75) {
      answer(process);
    } else if (turn <= 88) {
      slot.live = dice_.between(0, static_cast<std::uint32_t>(process.held));
      ledger_.table.want(process.slot, dice_.between(0, most), now_);
    } else if (turn <= 92) {
      (void)ledger_.table.grantable(process.slot, now_);
    } else if (turn <= 97) {
      sweep(process);
    } else {
      leave(process);
    }
  }
  process.within_operation = false;
}

void LedgerStorm::join(Process& process) {
  for (std::uint32_t index = 0; index < kTenants + 4; ++index) {
    if (ledger_.slots[index].state != LeaseState::empty || locked(index)) continue;
    LeaseSlot& slot = ledger_.join(index, dice_.between(250, 4000) / 1000.0);
    if (dice_.chance(30)) slot.limit_bytes = dice_.between(1, static_cast<std::uint32_t>(most_));
    // One group is bounded, and its bound stays as it is.
    if (dice_.chance(25)) {
      slot.facts.group_id = 1000;
      slot.group_limit_bytes = most_ / 2;
    }
    process.slot = index;
    process.held = 0;
    return;
  }
}

void LedgerStorm::leave(Process& process) {
  hold_memory(process, 0);
  ledger_.clear(process.slot, now_);
  process.slot = kNoSlot;
  process.held = 0;
}

void LedgerStorm::sweep(Process& process) {
  for (std::uint32_t index = 0; index < ledger_.header.high_water; ++index) {
    if (ledger_.slots[index].state != LeaseState::live || locked(index)) continue;
    // No lock is on it, so its owner is dead.
    process.sweeping = index;
    ledger_.clear(index, now_);
    process.sweeping = kNoSlot;
  }
}

void LedgerStorm::grow(Process& process, std::uint64_t granules, bool needed) {
  const Grant answer = needed ? ledger_.ask(process.slot, granules, now_)
                              : ledger_.table.resize(process.slot, granules, now_);
  if (answer != Grant::granted) return;
  process.held = granules;
  hold_memory(process, granules);
}

void LedgerStorm::shrink(Process& process, std::uint64_t granules) {
  hold_memory(process, granules);
  if (ledger_.table.resize(process.slot, granules, now_) != Grant::granted) {
    fail("holding less was refused");
  }
  process.held = granules;
  LeaseSlot& slot = ledger_.slots[process.slot];
  slot.live = std::min<std::uint64_t>(slot.live, granules);
}

void LedgerStorm::answer(Process& process) {
  const Ruling ruling = ledger_.table.ruling(process.slot, now_);
  const std::uint64_t asked = ruling.soft_pressure + ruling.hard_pressure;
  if (asked != 0) shrink(process, process.held - std::min(asked, process.held));
}

void LedgerStorm::observe() {
  std::vector<std::uint64_t> held;
  const std::uint64_t used = ledger_.table.snapshot(&held);
  for (const std::uint64_t granules : held) {
    if (granules > used) fail("a snapshot has more in one account than in all");
  }
  std::uint64_t sum = 0;
  for (const std::uint64_t granules : held) sum += granules;
  if (sum != used) fail("a snapshot does not add up");
}

// Makes physical memory follow: a whole handle for each growth, and the rest of one that is given
// back in part made anew, as nothing else may take it meanwhile.
void LedgerStorm::hold_memory(Process& process, std::uint64_t granules) {
  std::uint64_t there = 0;
  for (const Process::Memory& piece : process.memory) there += piece.granules;
  while (there > granules) {
    const Process::Memory piece = process.memory.back();
    if (device_.destroy(piece.handle, piece.granules * kGranule) != Status::ok) {
      fail("the device does not take memory back");
    }
    process.memory.pop_back();
    there -= piece.granules;
  }
  if (there == granules) return;
  Process::Memory piece;
  piece.granules = granules - there;
  if (device_.create(piece.granules * kGranule, &piece.handle) != Status::ok) {
    fail("the device has no memory for what was granted");
    return;
  }
  process.memory.push_back(piece);
}

}  // namespace kvcached
