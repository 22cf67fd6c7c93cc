// What must be so when a LedgerStorm is over: who is owed memory gets it.

#include <algorithm>

#include "ledger_storm.hpp"

namespace kvcached {

namespace {

// Where a stopped neighbour is asked for its part too, the others give theirs in ever smaller ones.
constexpr int kRoundsBesideTheStopped = 60;

std::uint64_t above(std::uint64_t value, std::uint64_t bound) {
  return value > bound ? value - bound : 0;
}

}  // namespace

std::vector<LedgerStorm::Process*> LedgerStorm::answering() {
  std::vector<Process*> found;
  for (Process& process : processes_) {
    if (!process.dead && process.slot != kNoSlot && !process.within_operation) {
      found.push_back(&process);
    }
  }
  return found;
}

// Old needs are over, and nobody needs more than it holds. False where that is not so of all:
// where the device has shrunk below what is held, or a stopped process is in the way.
bool LedgerStorm::settle_needs() {
  now_ += 2000 * kMillisecond;
  for (Process* const process : answering()) {
    LeaseSlot& slot = ledger_.slots[process->slot];
    slot.live = dice_.between(0, static_cast<std::uint32_t>(process->held));
    slot.floor_bytes = 0;
    ledger_.table.want(process->slot, slot.live, now_);
  }
  std::vector<Tenant> tenants;
  std::vector<Ruling> rulings;
  ledger_.table.judge_all(now_, &tenants, &rulings);
  if (ledger_.table.used() > ledger_.header.capacity) return false;
  for (const Ruling& ruling : rulings) {
    if (ruling.soft_pressure + ruling.hard_pressure != 0) fail("pressure though nobody waits");
  }
  return true;
}

// Everybody but the claimant answers pressure once, in any order and interleaved, and some then try
// to have more than they are owed.
void LedgerStorm::round(const Process& claimant, bool blocks_in_use) {
  task_ = [this, blocks_in_use](Process& process) {
    const Ruling ruling = ledger_.table.ruling(process.slot, now_);
    const std::uint64_t asked =
        ruling.soft_pressure + (blocks_in_use ? ruling.hard_pressure : 0);
    if (asked != 0) shrink(process, process.held - std::min(asked, process.held));
    if (dice_.chance(40)) grow(process, process.held + dice_.between(1, 20), false);
  };
  std::vector<Process*> left = answering();
  std::erase(left, &claimant);
  while (!left.empty() && failure_.empty()) {
    const std::size_t turn = dice_.between(0, static_cast<std::uint32_t>(left.size() - 1));
    advance(*left[turn]);
    if (!left[turn]->within_operation) left.erase(left.begin() + static_cast<std::ptrdiff_t>(turn));
  }
  task_ = nullptr;
}

// The claimant wants so much. It must get what is free and what others hold above their parts.
void LedgerStorm::reclaim(Process& claimant, std::uint64_t wish, bool blocks_in_use) {
  const std::uint64_t before = claimant.held;
  ledger_.slots[claimant.slot].live = before;
  if (ledger_.ask(claimant.slot, wish, now_) == Grant::granted) {
    claimant.held = wish;
    hold_memory(claimant, wish);
    return;
  }
  std::vector<Tenant> tenants;
  std::vector<Ruling> rulings;
  ledger_.table.judge_all(now_, &tenants, &rulings);
  const std::uint64_t goal = std::min(wish, rulings[claimant.slot].entitlement);
  std::uint64_t reach = above(ledger_.header.capacity, ledger_.table.used());
  bool all_answer = true;
  const std::vector<Process*> those = answering();
  for (std::uint32_t slot = 0; slot < tenants.size(); ++slot) {
    const Tenant& tenant = tenants[slot];
    const std::uint64_t excess = above(tenant.held, rulings[slot].entitlement);
    const std::uint64_t part = blocks_in_use ? excess : std::min(excess, tenant.held - tenant.live);
    if (slot == claimant.slot || part == 0) continue;
    if (std::any_of(those.begin(), those.end(), [slot](auto* one) { return one->slot == slot; })) {
      reach += part;
    } else {
      all_answer = false;
    }
  }
  const std::uint64_t due = std::min(goal, before + reach);
  if (due <= before) return;
  for (int turn = 0; turn < (all_answer ? 1 : kRoundsBesideTheStopped); ++turn) {
    round(claimant, blocks_in_use);
    ledger_.table.want(claimant.slot, wish, now_);
  }
  if (!failure_.empty()) return;
  grow(claimant, due, false);
  ++reclaims_;
  if (claimant.held != due) {
    fail("owed " + std::to_string(due) + ", holds " + std::to_string(before) + ", free " +
         std::to_string(above(ledger_.header.capacity, ledger_.table.used())) +
         (blocks_in_use ? ": a floor was not met" : ": what was reclaimed went elsewhere"));
  }
}

void LedgerStorm::check_reclaim() {
  const std::vector<Process*> those = answering();
  if (those.size() < 2 || !settle_needs()) return;
  Process& claimant = *those[dice_.between(0, static_cast<std::uint32_t>(those.size() - 1))];
  const LeaseSlot& slot = ledger_.slots[claimant.slot];
  if (slot.group_limit_bytes != 0) return;
  std::uint64_t wish = claimant.held + dice_.between(1, static_cast<std::uint32_t>(most_));
  if (slot.limit_bytes != 0) wish = std::min<std::uint64_t>(wish, slot.limit_bytes);
  if (wish > claimant.held) reclaim(claimant, wish, false);
}

void LedgerStorm::check_floor() {
  const std::vector<Process*> those = answering();
  if (those.size() < 2 || !settle_needs()) return;
  Process& claimant = *those[dice_.between(0, static_cast<std::uint32_t>(those.size() - 1))];
  LeaseSlot& slot = ledger_.slots[claimant.slot];
  if (slot.group_limit_bytes != 0) return;
  std::uint64_t floor = dice_.between(1, static_cast<std::uint32_t>(ledger_.header.capacity));
  if (slot.limit_bytes != 0) floor = std::min<std::uint64_t>(floor, slot.limit_bytes);
  if (floor <= claimant.held) return;
  slot.floor_bytes = floor;
  reclaim(claimant, floor, true);
}

}  // namespace kvcached
