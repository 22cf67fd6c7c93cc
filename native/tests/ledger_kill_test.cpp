// Real processes that join, resize, look and leave as fast as they can, and are killed wherever
// they happen to be. ledger_simulation_test.cpp chooses the places; this one has the processor, the
// kernel's locks and its memory.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <thread>
#include <vector>

#include "forked_child.hpp"
#include "kvcached/ledger.hpp"
#include "temporary_directory.hpp"
#include "test_seed.hpp"

namespace kvcached {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr int kDeaths = 200;
constexpr std::size_t kProcesses = 6;
constexpr std::uint64_t kGranule = 4096;
constexpr std::uint64_t kTotal = std::uint64_t{64} << 20;

volatile sig_atomic_t g_ended = 0;

LeaseTerms terms() {
  LeaseTerms found;
  found.group = "vllm";
  found.instance = std::to_string(::getpid());
  return found;
}

Status join(const std::string& path, std::unique_ptr<Lease>* lease) {
  std::string error;
  return Lease::join(path, {"GPU-1", "sim", kGranule}, false, terms(), {kTotal, kTotal}, lease,
                     &error);
}

// A process's whole life. Nothing is left of it where it ends by itself.
int live(const std::string& path, std::uint64_t seed) {
  Dice dice(seed);
  while (g_ended == 0) {
    std::unique_ptr<Lease> lease;
    if (join(path, &lease) != Status::ok) return 1;
    LedgerTable& table = lease->ledger().table();
    for (std::uint32_t turns = dice.between(1, 100'000); turns > 0 && g_ended == 0; --turns) {
      (void)lease->resize(dice.between(0, kTotal / 4));
      if (dice.chance(5)) (void)table.ruling(lease->slot(), monotonic_ns());
      if (dice.chance(1)) (void)lease->ledger().sweep(lease->slot());
      if (table.used() * kGranule > kTotal) return 2;
    }
  }
  return 0;
}

class LedgerUnderKills : public testing::Test {
 protected:
  LedgerUnderKills() : dice_(first_seed()) {
    children_.resize(kProcesses);
    for (pid_t& child : children_) child = begin();
  }
  ~LedgerUnderKills() override {
    for (const pid_t child : children_) {
      if (child > 0 && ::kill(child, SIGKILL) == 0) ::waitpid(child, nullptr, 0);
    }
  }

  pid_t begin() {
    const std::uint64_t seed = dice_.between(1, 1U << 30);
    // The end may be asked for before the child is ready to hear of it.
    sigset_t end;
    ::sigemptyset(&end);
    ::sigaddset(&end, SIGTERM);
    ::sigprocmask(SIG_BLOCK, &end, nullptr);
    const pid_t child = ::fork();
    if (child != 0) {
      ::sigprocmask(SIG_UNBLOCK, &end, nullptr);
      return child;
    }
    struct sigaction action{};
    action.sa_handler = [](int) { g_ended = 1; };
    ::sigaction(SIGTERM, &action, nullptr);
    ::sigprocmask(SIG_UNBLOCK, &end, nullptr);
    // Where the test itself is killed, nobody else would end it.
    ::alarm(120);
    ::_exit(live(path_, seed));
  }

  // How long it takes until nothing of a dead process is in the ledger.
  static microseconds until_forgotten(Lease& lease, pid_t dead) {
    Ledger& ledger = lease.ledger();
    const Clock::time_point began = Clock::now();
    const auto remembered = [&] {
      for (std::uint32_t slot = 0; slot < ledger.table().header().high_water; ++slot) {
        const LeaseSlot& found = ledger.table().slot(slot);
        if (found.state == LeaseState::live && found.facts.pid == static_cast<unsigned>(dead)) {
          return true;
        }
      }
      return false;
    };
    while (remembered() && Clock::now() - began < std::chrono::seconds(2)) {
      (void)ledger.sweep(lease.slot());
    }
    return std::chrono::duration_cast<microseconds>(Clock::now() - began);
  }

  TemporaryDirectory directory_;
  std::string path_ = directory_ / "GPU-1.ledger";
  Dice dice_;
  std::vector<pid_t> children_;
};

TEST_F(LedgerUnderKills, AddsUpAfterEveryDeathAndHasTheBytesBackWithinASecond) {
  SCOPED_TRACE(describe_seed(first_seed()));
  std::unique_ptr<Lease> lease;
  ASSERT_EQ(join(path_, &lease), Status::ok);
  microseconds slowest{0};
  for (int death = 0; death < kDeaths; ++death) {
    std::this_thread::sleep_for(microseconds(dice_.between(0, 10'000)));
    pid_t& victim = children_[dice_.between(0, kProcesses - 1)];
    ::kill(victim, SIGKILL);
    int status = 0;
    ::waitpid(victim, &status, 0);
    ASSERT_TRUE(killed_by(status, SIGKILL)) << "a process ended by itself: " << status;
    slowest = std::max(slowest, until_forgotten(*lease, victim));
    ASSERT_LT(slowest, std::chrono::seconds(1));
    std::vector<std::uint64_t> held;
    const std::uint64_t used = lease->ledger().table().snapshot(&held);
    std::uint64_t sum = 0;
    for (const std::uint64_t granules : held) sum += granules;
    ASSERT_EQ(used, sum) << "after death " << death;
    ASSERT_LE(used * kGranule, kTotal);
    victim = begin();
  }
  RecordProperty("slowest_us", std::to_string(slowest.count()));
  EXPECT_GT(lease->ledger().table().header().deaths, static_cast<unsigned>(kDeaths / 4));

  lease.reset();
  for (const pid_t child : children_) ::kill(child, SIGTERM);
  for (pid_t& child : children_) {
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_TRUE(succeeded(status)) << "status " << status;
    child = -1;
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
}

}  // namespace
}  // namespace kvcached
