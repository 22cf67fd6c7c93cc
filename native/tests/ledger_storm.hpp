#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fiber.hpp"
#include "kvcached/sim_driver.hpp"
#include "ledger_in_memory.hpp"
#include "test_seed.hpp"

namespace kvcached {

/// One schedule of many processes on one ledger: they join, resize, answer pressure, sweep, look,
/// change the capacity and leave, are killed or stopped at any access to shared state, and their
/// accesses interleave. Everything follows from the seed. What a lease is granted exists on a
/// simulated device no larger than the largest capacity.
class LedgerStorm {
 public:
  static constexpr std::uint32_t kTenants = 16;
  static constexpr std::uint64_t kMillisecond = 1'000'000;

  explicit LedgerStorm(std::uint64_t seed);
  LedgerStorm(const LedgerStorm&) = delete;
  LedgerStorm& operator=(const LedgerStorm&) = delete;
  ~LedgerStorm();

  /// Runs until so many operations have been begun.
  void rage(int operations);
  /// Lets everybody who is not stopped finish what it is at, without deaths, and sweeps the dead.
  void calm_down();

  /// One tenant below its entitlement wants memory, everybody who is not stopped answers pressure
  /// once, and others try to get in between: it must have what they held beyond theirs.
  void check_reclaim();
  /// The same for a floor, to which blocks in use give way too.
  void check_floor();

  /// The first broken promise; empty where all were kept.
  [[nodiscard]] const std::string& failure() const noexcept { return failure_; }
  [[nodiscard]] std::uint64_t switches() const noexcept { return switches_; }
  [[nodiscard]] std::uint64_t deaths() const noexcept { return deaths_; }
  [[nodiscard]] std::uint64_t stops() const noexcept { return stops_; }
  [[nodiscard]] std::uint64_t reclaims() const noexcept { return reclaims_; }

 private:
  struct Killed {};

  /// A process and, where it has one, its lease.
  struct Process {
    std::unique_ptr<Fiber> fiber;
    std::uint32_t slot = kNoSlot;
    /// A slot whose owner it has proved dead.
    std::uint32_t sweeping = kNoSlot;
    bool dead = false;
    bool within_operation = false;
    std::uint64_t stopped_until = 0;
    std::uint64_t held = 0;
    struct Memory {
      Handle handle;
      std::uint64_t granules = 0;
    };
    std::vector<Memory> memory;
  };

  static constexpr std::size_t kGranule = 4096;

  void visit(const char* where);
  void check(const char* where);
  void fail(std::string text);
  void advance(Process& process);
  void start(Process& process);
  void die(Process& process);
  [[nodiscard]] bool locked(std::uint32_t slot) const;

  // What processes do.
  void operate(Process& process);
  void join(Process& process);
  void leave(Process& process);
  void sweep(Process& process);
  void grow(Process& process, std::uint64_t granules, bool needed);
  void shrink(Process& process, std::uint64_t granules);
  void answer(Process& process);
  void observe();
  void hold_memory(Process& process, std::uint64_t granules);

  // The end of a schedule.
  [[nodiscard]] std::vector<Process*> answering();
  [[nodiscard]] bool settle_needs();
  void reclaim(Process& claimant, std::uint64_t wish, bool blocks_in_use);
  void everybody_but(const Process& claimant, std::function<void(Process&)> task);
  void round(const Process& claimant, bool blocks_in_use, bool at_once);

  Dice dice_;
  std::uint64_t most_;
  LedgerInMemory ledger_;
  SimDriver device_;
  std::array<Process, kTenants + 2> processes_;
  Process* running_ = nullptr;
  /// What processes do instead of something random.
  std::function<void(Process&)> task_;
  std::uint64_t now_;
  std::uint32_t kill_permille_;
  std::uint32_t stop_permille_;
  std::uint32_t switch_percent_;
  bool raging_ = false;
  std::uint64_t last_word_ = 0;
  std::uint64_t highest_capacity_ = 0;
  std::string failure_;
  std::uint64_t switches_ = 0;
  std::uint64_t deaths_ = 0;
  std::uint64_t stops_ = 0;
  std::uint64_t reclaims_ = 0;
};

}  // namespace kvcached
