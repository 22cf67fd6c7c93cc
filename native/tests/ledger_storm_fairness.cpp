// What must be so when a LedgerStorm is over: who is owed memory gets it.

#include <algorithm>
#include <array>
#include <utility>

#include "ledger_storm.hpp"

namespace kvcached {

namespace {

// Who looks later finds less wanted and its part of that smaller; the same where a stopped
// neighbour is asked for a part. What is left over comes in rounds of ever smaller parts, a granule
// at least.
constexpr int kRounds = 60;

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

// Everybody but the claimant does something, in any order and interleaved.
void LedgerStorm::everybody_but(const Process& claimant, std::function<void(Process&)> task) {
  task_ = std::move(task);
  std::vector<Process*> left = answering();
  std::erase(left, &claimant);
  while (!left.empty() && failure_.empty()) {
    const std::size_t turn = dice_.between(0, static_cast<std::uint32_t>(left.size() - 1));
    advance(*left[turn]);
    if (!left[turn]->within_operation) left.erase(left.begin() + static_cast<std::ptrdiff_t>(turn));
  }
  task_ = nullptr;
}

// Everybody but the claimant answers pressure once, and some then try to have more than they are
// owed. All have heard before the first gives, or each looks when its turn comes.
void LedgerStorm::round(const Process& claimant, bool blocks_in_use, bool at_once) {
  std::array<std::uint64_t, kLedgerSlots> asked{};
  const auto look = [this, blocks_in_use, &asked](const Process& process) {
    const Ruling ruling = ledger_.table.ruling(process.slot, now_);
    asked[process.slot] = ruling.soft_pressure + (blocks_in_use ? ruling.hard_pressure : 0);
  };
  if (at_once) everybody_but(claimant, look);
  everybody_but(claimant, [&](Process& process) {
    if (!at_once) look(process);
    const std::uint64_t give = std::min(asked[process.slot], process.held);
    if (give != 0) shrink(process, process.held - give);
    if (dice_.chance(40)) grow(process, process.held + dice_.between(1, 20), false);
  });
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
  std::uint64_t goal = std::min(wish, rulings[claimant.slot].entitlement);
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
      // What a stopped neighbour owes is asked of nobody else.
      goal = above(goal, part);
      all_answer = false;
    }
  }
  const std::uint64_t due = std::min(goal, before + reach);
  if (due <= before) return;
  const bool at_once = dice_.chance(50);
  for (int turn = 0; turn < (all_answer && at_once ? 1 : kRounds) && failure_.empty(); ++turn) {
    round(claimant, blocks_in_use, at_once);
    if (ledger_.table.used() + (due - before) <= ledger_.header.capacity) break;
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
