#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "ledger_in_memory.hpp"
#include "test_seed.hpp"

namespace kvcached {

/// An engine as its ledger sees it, in virtual time: requests of random size and length that wait,
/// run and end, and a cache of what they leave behind. It answers pressure at every step: cache at
/// once, blocks in use as requests end.
class SimulatedEngine {
 public:
  struct Load {
    std::uint32_t least_granules = 4;
    std::uint32_t most_granules = 20;
    std::uint32_t least_ms = 50;
    std::uint32_t most_ms = 400;
    /// Requests kept waiting, so that memory is never enough; 0: none come.
    std::uint32_t waiting = 50;
  };

  SimulatedEngine(LedgerInMemory& ledger, std::uint32_t slot, std::uint64_t seed)
      : ledger_(ledger), slot_(slot), dice_(seed) {}

  Load load;

  /// One step of the engine.
  void step(std::uint64_t now_ns) {
    std::erase_if(running_, [now_ns](const Request& one) { return one.ends_ns <= now_ns; });
    if (load.waiting == 0) waiting_.clear();
    while (waiting_.size() < load.waiting) {
      waiting_.push_back({dice_.between(load.least_granules, load.most_granules), 0});
    }
    tell(now_ns);
    const std::uint64_t owed = give_back(now_ns);
    while (!waiting_.empty()) {
      const std::uint64_t need = live() + waiting_.front().granules;
      // What is owed and in use is withheld from new requests.
      if (need + owed > held_) {
        if (owed != 0 || ledger_.ask(slot_, need, now_ns) != Grant::granted) break;
        held_ = need;
      }
      Request begun = waiting_.front();
      waiting_.pop_front();
      begun.ends_ns = now_ns + dice_.between(load.least_ms, load.most_ms) * 1'000'000ULL;
      running_.push_back(begun);
    }
    tell(now_ns);
  }

  [[nodiscard]] std::uint64_t held() const noexcept { return held_; }
  [[nodiscard]] std::uint64_t given_back() const noexcept { return given_back_; }
  [[nodiscard]] std::uint64_t live() const {
    std::uint64_t sum = 0;
    for (const Request& one : running_) sum += one.granules;
    return sum;
  }

 private:
  struct Request {
    std::uint64_t granules = 0;
    std::uint64_t ends_ns = 0;
  };

  void tell(std::uint64_t now_ns) {
    std::uint64_t wanted = live();
    for (const Request& one : waiting_) wanted += one.granules;
    ledger_.slots[slot_].live = live();
    ledger_.table.want(slot_, wanted, now_ns);
  }
  // Returns what is still owed.
  std::uint64_t give_back(std::uint64_t now_ns) {
    const Ruling ruling = ledger_.table.ruling(slot_, now_ns);
    const std::uint64_t owed = ruling.soft_pressure + ruling.hard_pressure;
    const std::uint64_t now = std::min(owed, held_ - std::min(held_, live()));
    if (now != 0) {
      held_ -= now;
      given_back_ += now;
      (void)ledger_.table.resize(slot_, held_, now_ns);
    }
    return owed - now;
  }

  LedgerInMemory& ledger_;
  std::uint32_t slot_;
  Dice dice_;
  std::vector<Request> running_;
  std::deque<Request> waiting_;
  std::uint64_t held_ = 0;
  std::uint64_t given_back_ = 0;
};

/// Engines on one ledger, stepping one after another in an order that changes.
class SimulatedEngines {
 public:
  static constexpr std::uint64_t kStepNs = 10'000'000;
  static constexpr std::uint64_t kSecond = 1'000'000'000;

  SimulatedEngines(std::uint64_t capacity, std::uint64_t seed) : ledger(capacity), dice_(seed) {}

  /// A lease more; its number.
  std::size_t add(double weight = 1.0, std::uint64_t floor = 0) {
    const auto slot = static_cast<std::uint32_t>(engines.size());
    ledger.join(slot, weight, floor);
    engines.emplace_back(ledger, slot, dice_.between(0, 1U << 30));
    return slot;
  }
  void run(double seconds) {
    const std::uint64_t end = now + static_cast<std::uint64_t>(seconds * 1e9);
    for (; now < end; now += kStepNs) {
      const auto first = dice_.between(0, static_cast<std::uint32_t>(engines.size() - 1));
      for (std::size_t turn = 0; turn < engines.size(); ++turn) {
        engines[(first + turn) % engines.size()].step(now + turn * 1000);
      }
      const Accounts accounts = Accounts::of(ledger);
      exact = exact && accounts.used == accounts.sum && accounts.used <= ledger.header.capacity;
    }
  }
  [[nodiscard]] std::uint64_t given_back() const {
    std::uint64_t sum = 0;
    for (const SimulatedEngine& engine : engines) sum += engine.given_back();
    return sum;
  }

  LedgerInMemory ledger;
  std::deque<SimulatedEngine> engines;
  std::uint64_t now = 100 * kSecond;
  /// Whether the accounts added up, and fitted, after every step.
  bool exact = true;

 private:
  Dice dice_;
};

}  // namespace kvcached
