#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "child_process.hpp"
#include "forked_child.hpp"
#include "kvcached/ledger.hpp"
#include "temporary_directory.hpp"

namespace kvcached {
namespace {

constexpr std::uint64_t kGranule = 4096;
constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint64_t kTotal = 256 * kMiB;

std::uint64_t capacity_of(Ledger& ledger) {
  return ledger.table().header().capacity.load() * kGranule;
}

class LedgerFile : public testing::Test {
 protected:
  static LedgerDevice device() { return {"GPU-1234", "sim", kGranule}; }
  static LeaseTerms terms(const std::string& instance = "a") {
    LeaseTerms found;
    found.group = "vllm";
    found.instance = instance;
    found.engine = "vllm";
    return found;
  }

  Status join(std::unique_ptr<Lease>* lease, const LeaseTerms& asked,
              const LedgerDevice& id = device(), MemoryInfo memory = {kTotal, kTotal}) {
    lease->reset();
    error_.clear();
    return Lease::join(path_, id, false, asked, memory, lease, &error_);
  }
  std::unique_ptr<Lease> joined(const std::string& instance = "a") {
    std::unique_ptr<Lease> lease;
    EXPECT_EQ(join(&lease, terms(instance)), Status::ok) << error_;
    return lease;
  }
  std::unique_ptr<Ledger> opened() {
    std::unique_ptr<Ledger> ledger;
    EXPECT_EQ(Ledger::open(path_, &ledger, &error_), Status::ok) << error_;
    return ledger;
  }
  [[nodiscard]] bool there() const { return std::filesystem::exists(path_); }
  // Overwrites the first bytes, as damage or another version would.
  void overwrite(std::streamoff at, std::uint64_t value) const {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(at);
    file.write(reinterpret_cast<const char*>(&value), sizeof value);
  }

  TemporaryDirectory directory_;
  std::string path_ = directory_ / "GPU-1234.ledger";
  std::string error_;
};

TEST_F(LedgerFile, IsMadeByTheFirstAndRemovedByTheLast) {
  std::unique_ptr<Lease> first = joined("a");
  std::unique_ptr<Lease> second = joined("b");
  ASSERT_TRUE(first && second);
  EXPECT_NE(first->slot(), second->slot());
  EXPECT_EQ(first->resize(10 * kMiB), Grant::granted);
  EXPECT_EQ(second->resize(kTotal - 10 * kMiB + 1), Grant::no_capacity);
  EXPECT_EQ(second->resize(kTotal - 10 * kMiB), Grant::granted);
  first.reset();
  EXPECT_TRUE(there());
  EXPECT_EQ(second->ledger().table().used() * kGranule, kTotal - 10 * kMiB);
  second->leave();
  EXPECT_FALSE(there());
}

TEST_F(LedgerFile, IsItsOwnersAlone) {
  const std::unique_ptr<Lease> lease = joined();
  struct stat info{};
  ASSERT_EQ(::stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(LedgerFile, IsTheGroupsWhereItIsShared) {
  std::unique_ptr<Lease> lease;
  ASSERT_EQ(Lease::join(path_, device(), true, terms(), {kTotal, kTotal}, &lease, &error_),
            Status::ok);
  struct stat info{};
  ASSERT_EQ(::stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0660u);
}

TEST_F(LedgerFile, SaysWhoHasALease) {
  LeaseTerms asked = terms("host/1/xyz");
  asked.rank = 3;
  asked.limit_bytes = 7 * kMiB;
  asked.weight = 2.5;
  asked.extent_bytes = 8192;
  std::unique_ptr<Lease> lease;
  ASSERT_EQ(join(&lease, asked), Status::ok) << error_;
  const std::unique_ptr<Ledger> ledger = opened();
  const LeaseSlot& slot = ledger->table().slot(lease->slot());
  EXPECT_STREQ(slot.facts.instance, "host/1/xyz");
  EXPECT_STREQ(slot.facts.group, "vllm");
  EXPECT_EQ(slot.facts.rank, 3u);
  EXPECT_EQ(slot.facts.pid, static_cast<std::uint32_t>(::getpid()));
  EXPECT_EQ(slot.weight_thousandths, 2500u);
  EXPECT_EQ(slot.limit_bytes, 7 * kMiB);
  EXPECT_TRUE(ledger->alive(lease->slot()));
  EXPECT_EQ(lease->resize(7 * kMiB + 1), Grant::over_limit);
}

TEST_F(LedgerFile, CutsLongNamesInsteadOfRunningOver) {
  std::unique_ptr<Lease> lease;
  ASSERT_EQ(join(&lease, terms(std::string(1000, 'x'))), Status::ok) << error_;
  const LeaseFacts& facts = lease->ledger().table().slot(lease->slot()).facts;
  EXPECT_EQ(std::string(facts.instance), std::string(sizeof facts.instance - 1, 'x'));
}

TEST_F(LedgerFile, RefusesAnAbsurdSize) {
  const std::unique_ptr<Lease> lease = joined();
  ASSERT_EQ(lease->resize(kMiB), Grant::granted);
  EXPECT_EQ(lease->resize(~std::uint64_t{0}), Grant::no_capacity);
  EXPECT_EQ(lease->ledger().table().used() * kGranule, kMiB);
}

TEST_F(LedgerFile, RefusesAnotherDevice) {
  const std::unique_ptr<Lease> lease = joined();
  std::unique_ptr<Lease> other;
  EXPECT_EQ(join(&other, terms(), {"GPU-9", "sim", kGranule}), Status::unsupported);
  EXPECT_NE(error_.find("GPU-1234"), std::string::npos) << error_;
  EXPECT_EQ(join(&other, terms(), {"GPU-1234", "sim", 2 * kGranule}), Status::unsupported);
  EXPECT_EQ(error_.find('\n'), std::string::npos);
}

TEST_F(LedgerFile, RefusesAnotherVersion) {
  const std::unique_ptr<Lease> lease = joined();
  overwrite(8, 42);
  std::unique_ptr<Lease> other;
  EXPECT_EQ(join(&other, terms()), Status::unsupported);
  EXPECT_NE(error_.find("not a ledger of this version"), std::string::npos) << error_;
  EXPECT_TRUE(there());
}

TEST_F(LedgerFile, RefusesADamagedHeader) {
  const std::unique_ptr<Lease> lease = joined();
  overwrite(0, 0x1234);
  std::unique_ptr<Ledger> ledger;
  EXPECT_EQ(Ledger::open(path_, &ledger, &error_), Status::unsupported);
  std::unique_ptr<Lease> other;
  EXPECT_EQ(join(&other, terms()), Status::unsupported);
}

TEST_F(LedgerFile, RefusesAFileOfAnotherSize) {
  std::ofstream(path_) << "this is no ledger";
  std::unique_ptr<Lease> lease;
  EXPECT_EQ(join(&lease, terms()), Status::unsupported);
  EXPECT_NE(error_.find(path_), std::string::npos);
  EXPECT_TRUE(there());
}

TEST_F(LedgerFile, SaysThatThereIsNone) {
  std::unique_ptr<Ledger> ledger;
  EXPECT_EQ(Ledger::open(path_, &ledger, &error_), Status::not_found);
}

TEST_F(LedgerFile, TakesOverAnEmptyFileThatAKilledCreatorLeft) {
  std::ofstream(path_).close();
  const std::unique_ptr<Lease> lease = joined();
  ASSERT_NE(lease, nullptr);
  EXPECT_EQ(lease->resize(kMiB), Grant::granted);
}

TEST_F(LedgerFile, ReplacesAFileWhoseCreatorWasKilledBeforeItWasReady) {
  {
    const std::unique_ptr<Lease> lease = joined();
    std::filesystem::copy_file(path_, directory_ / "copy");
  }
  std::filesystem::rename(directory_ / "copy", path_);
  overwrite(0, 0);  // the magic number is written last
  const std::unique_ptr<Lease> lease = joined();
  ASSERT_NE(lease, nullptr);
  EXPECT_EQ(lease->resize(kMiB), Grant::granted);
}

TEST_F(LedgerFile, RefusesFloorsThatDoNotFitAndSaysWhoHasThem) {
  LeaseTerms asked = terms("first");
  asked.floor_bytes = 200 * kMiB;
  std::unique_ptr<Lease> first;
  ASSERT_EQ(join(&first, asked), Status::ok) << error_;
  asked.instance = "second";
  asked.floor_bytes = 57 * kMiB;
  std::unique_ptr<Lease> second;
  EXPECT_EQ(join(&second, asked), Status::out_of_memory);
  EXPECT_NE(error_.find("first has 200 MiB"), std::string::npos) << error_;
  EXPECT_NE(error_.find("KVCACHED_FLOOR"), std::string::npos) << error_;
  asked.floor_bytes = 56 * kMiB;
  EXPECT_EQ(join(&second, asked), Status::ok) << error_;
}

TEST_F(LedgerFile, HasRoomFor255LeasesAndSaysSoThen) {
  // Half of them in another process: one process can have only so many files open here.
  const ChildProcess child([&](auto stay) {
    std::vector<std::unique_ptr<Lease>> leases;
    for (int count = 0; count < 128; ++count) leases.push_back(joined());
    stay(static_cast<int>(leases.back() != nullptr));
  });
  ASSERT_EQ(child.report(), 1);
  std::vector<std::unique_ptr<Lease>> leases;
  for (int count = 0; count < 127; ++count) {
    leases.push_back(joined());
    ASSERT_NE(leases.back(), nullptr);
  }
  std::unique_ptr<Lease> one_more;
  EXPECT_EQ(join(&one_more, terms()), Status::out_of_memory);
  EXPECT_NE(error_.find("all 255 leases are taken"), std::string::npos) << error_;
  leases.pop_back();
  EXPECT_EQ(join(&one_more, terms()), Status::ok) << error_;
}

TEST_F(LedgerFile, GivesBackWhatAKilledProcessHeld) {
  const std::unique_ptr<Lease> lease = joined();
  ChildProcess child([&](auto stay) {
    const std::unique_ptr<Lease> its = joined("child");
    (void)its->resize(100 * kMiB);
    stay(static_cast<int>(its->slot()));
  });
  const auto slot = static_cast<std::uint32_t>(child.report());
  Ledger& ledger = lease->ledger();
  EXPECT_EQ(ledger.sweep(lease->slot()), 0u);
  EXPECT_TRUE(ledger.alive(slot));
  EXPECT_EQ(ledger.table().used() * kGranule, 100 * kMiB);
  child.kill();
  EXPECT_FALSE(ledger.alive(slot));
  EXPECT_EQ(ledger.sweep(lease->slot()), 1u);
  EXPECT_EQ(ledger.table().used(), 0u);
  EXPECT_EQ(ledger.table().header().deaths, 1u);
  EXPECT_EQ(ledger.sweep(lease->slot()), 0u);
}

TEST_F(LedgerFile, IsSweptByWhoJoins) {
  {
    const ChildProcess child([&](auto stay) {
      const std::unique_ptr<Lease> its = joined("child");
      (void)its->resize(100 * kMiB);
      stay(1);
    });
    ASSERT_EQ(child.report(), 1);
  }
  ASSERT_TRUE(there());
  const std::unique_ptr<Lease> lease = joined();
  EXPECT_EQ(lease->ledger().table().used(), 0u);
  EXPECT_EQ(lease->ledger().table().header().deaths, 1u);
}

TEST_F(LedgerFile, IsRemovedWhereAllItsOwnersWereKilled) {
  {
    const ChildProcess child([&](auto stay) {
      const std::unique_ptr<Lease> its = joined("child");
      stay(1);
    });
    EXPECT_TRUE(remove_dead_ledgers(directory_.path()).empty());
  }
  EXPECT_EQ(remove_dead_ledgers(directory_.path()), std::vector<std::string>{path_});
  EXPECT_FALSE(there());
}

TEST_F(LedgerFile, IsNotHeldByAForkedChildOfADeadOwner) {
  const std::unique_ptr<Lease> lease = joined();
  ChildProcess owner([&](auto stay) {
    const std::unique_ptr<Lease> its = joined("owner");
    (void)its->resize(kMiB);
    stay(fork_idle_process());
  });
  const pid_t grandchild = owner.report();
  ASSERT_GT(grandchild, 0);
  EXPECT_EQ(lease->ledger().table().used() * kGranule, kMiB);
  owner.kill();
  EXPECT_EQ(lease->ledger().sweep(lease->slot()), 1u);
  EXPECT_EQ(lease->ledger().table().used(), 0u);
  ::kill(grandchild, SIGKILL);
}

TEST_F(LedgerFile, DoesNotLoseItsParentsLeaseInAForkedChild) {
  std::unique_ptr<Lease> lease = joined();
  ASSERT_EQ(lease->resize(kMiB), Grant::granted);
  EXPECT_TRUE(succeeded(run_in_child([&] {
    lease.reset();
    return 0;
  })));
  EXPECT_TRUE(there());
  EXPECT_TRUE(opened()->alive(lease->slot()));
  EXPECT_EQ(lease->ledger().table().used() * kGranule, kMiB);
}

TEST_F(LedgerFile, LetsSixteenProcessesJoinAndLeaveAtOnce) {
  std::vector<pid_t> children;
  for (int count = 0; count < 16; ++count) {
    const pid_t child = ::fork();
    if (child == 0) {
      for (int turn = 0; turn < 10; ++turn) {
        std::unique_ptr<Lease> lease;
        if (join(&lease, terms(std::to_string(::getpid()))) != Status::ok) ::_exit(1);
        if (lease->resize(kTotal / 16) != Grant::granted) ::_exit(2);
        if (!lease->ledger().lock().is_current(path_)) ::_exit(3);
        if (lease->ledger().table().used() * kGranule > kTotal) ::_exit(4);
      }
      ::_exit(0);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = -1;
    ::waitpid(child, &status, 0);
    EXPECT_TRUE(succeeded(status)) << WEXITSTATUS(status);
  }
  EXPECT_FALSE(there());
}

class LedgerSample : public LedgerFile {
 protected:
  void look(Lease& lease, std::uint64_t free_bytes) {
    const auto sample = lease.ledger().begin_sample();
    ASSERT_TRUE(sample);
    lease.ledger().end_sample(*sample, {free_bytes, kTotal}, now_ += 200'000'000);
  }
  std::uint64_t now_ = monotonic_ns();
};

TEST_F(LedgerSample, LowersTheCapacityAtOnceAndRaisesItAfterTwoLooks) {
  const std::unique_ptr<Lease> lease = joined();
  Ledger& ledger = lease->ledger();
  EXPECT_EQ(capacity_of(ledger), kTotal);
  look(*lease, 100 * kMiB);
  EXPECT_EQ(capacity_of(ledger), 100 * kMiB);
  look(*lease, 150 * kMiB);
  EXPECT_EQ(capacity_of(ledger), 100 * kMiB);
  look(*lease, 140 * kMiB);
  EXPECT_EQ(capacity_of(ledger), 140 * kMiB);
}

TEST_F(LedgerSample, TakesOneHighLookForNoise) {
  const std::unique_ptr<Lease> lease = joined();
  for (const std::uint64_t free : {100, 200, 100, 200, 100}) look(*lease, free * kMiB);
  EXPECT_EQ(capacity_of(lease->ledger()), 100 * kMiB);
}

TEST_F(LedgerSample, CountsWhatLeasesHaveAlready) {
  const std::unique_ptr<Lease> lease = joined();
  ASSERT_EQ(lease->resize(60 * kMiB), Grant::granted);
  lease->begin_move();
  lease->end_move(60 * kMiB);
  look(*lease, kTotal - 60 * kMiB);
  EXPECT_EQ(capacity_of(lease->ledger()), kTotal);
}

TEST_F(LedgerSample, IsNoneWhileMemoryMoves) {
  const std::unique_ptr<Lease> lease = joined();
  lease->begin_move();
  EXPECT_FALSE(lease->ledger().begin_sample());
  lease->end_move(0);
  EXPECT_TRUE(lease->ledger().begin_sample());
}

TEST_F(LedgerSample, IsWorthNothingWhereMemoryMovedMeanwhile) {
  const std::unique_ptr<Lease> first = joined("a");
  const std::unique_ptr<Lease> second = joined("b");
  first->begin_move();
  first->end_move(10 * kMiB);
  const auto sample = second->ledger().begin_sample();
  ASSERT_TRUE(sample);
  // What one gives the other takes: the sum is the same, but the device was seen in between.
  first->begin_move();
  first->end_move(5 * kMiB);
  second->begin_move();
  second->end_move(5 * kMiB);
  second->ledger().end_sample(*sample, {50 * kMiB, kTotal}, now_);
  EXPECT_EQ(capacity_of(second->ledger()), kTotal);
}

TEST_F(LedgerSample, KeepsApartWhatEnginesWillWantAndWhatNobodyMayUse) {
  LeaseTerms asked = terms();
  asked.utilisation = 0.9;
  std::unique_ptr<Lease> lease;
  ASSERT_EQ(join(&lease, asked), Status::ok) << error_;
  const double share = 0.9 * static_cast<double>(kTotal);
  EXPECT_NEAR(static_cast<double>(capacity_of(lease->ledger())), share, kMiB);
  lease->reserve(20 * kMiB);
  look(*lease, kTotal);
  EXPECT_NEAR(static_cast<double>(capacity_of(lease->ledger())), share - 20 * kMiB, kMiB);
  lease->ledger().table().slot(lease->slot()).device_limit_bytes = 30 * kMiB;
  look(*lease, kTotal);
  EXPECT_EQ(capacity_of(lease->ledger()), 30 * kMiB);
}

TEST_F(LedgerSample, OfLessThanIsHeldPresses) {
  const std::unique_ptr<Lease> lease = joined();
  ASSERT_EQ(lease->resize(200 * kMiB), Grant::granted);
  look(*lease, 100 * kMiB);
  EXPECT_NE(lease->ledger().table().header().contended, 0u);
  const Ruling ruling = lease->ledger().table().ruling(lease->slot(), monotonic_ns());
  EXPECT_EQ((ruling.soft_pressure + ruling.hard_pressure) * kGranule, 100 * kMiB);
}

TEST_F(LedgerSample, IsDueForOneOfAllAskers) {
  const std::unique_ptr<Lease> first = joined("a");
  const std::unique_ptr<Lease> second = joined("b");
  const std::uint64_t later = monotonic_ns() + 1'000'000'000;
  EXPECT_FALSE(first->ledger().sample_due(100'000'000, monotonic_ns()));
  EXPECT_TRUE(first->ledger().sample_due(100'000'000, later));
  EXPECT_FALSE(second->ledger().sample_due(100'000'000, later));
}

}  // namespace
}  // namespace kvcached
