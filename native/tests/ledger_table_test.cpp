#include "kvcached/ledger_table.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ledger_in_memory.hpp"
#include "test_seed.hpp"

namespace kvcached {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr std::uint64_t kStart = 100 * kSecond;

/// Ends the operation that comes to a place for the n-th time, as SIGKILL does.
class DeathAt {
 public:
  struct Died {};

  DeathAt(const char* where, int visit) {
    where_ = where;
    left_ = visit;
    LedgerTable::set_probe([](const char* found) {
      if (where_ == found && --left_ == 0) throw Died{};
    });
  }
  ~DeathAt() { LedgerTable::set_probe(nullptr); }
  DeathAt(const DeathAt&) = delete;
  DeathAt& operator=(const DeathAt&) = delete;

 private:
  inline static std::string where_;
  inline static int left_ = 0;
};

std::vector<std::uint64_t> held_of(LedgerInMemory& ledger) {
  std::vector<std::uint64_t> held;
  (void)ledger.table.snapshot(&held);
  return held;
}

void expect_exact(const LedgerInMemory& ledger) {
  const Accounts accounts = Accounts::of(ledger);
  EXPECT_EQ(accounts.used, accounts.sum);
}

TEST(LedgerWord, SurvivesPackingAtItsBounds) {
  const LedgerWord word{LedgerWord::kMostGranules, 254, LedgerWord::kSequenceMask};
  const LedgerWord found = LedgerWord::unpack(word.pack());
  EXPECT_EQ(found.used, word.used);
  EXPECT_EQ(found.slot, word.slot);
  EXPECT_EQ(found.sequence, word.sequence);
}

TEST(LedgerTable, GrantsUpToTheCapacityAndNoFurther) {
  LedgerInMemory ledger(100);
  ledger.join(0);
  ledger.join(1);
  EXPECT_EQ(ledger.table.resize(0, 60, kStart), Grant::granted);
  EXPECT_EQ(ledger.table.resize(1, 41, kStart), Grant::no_capacity);
  EXPECT_EQ(ledger.table.resize(1, 40, kStart), Grant::granted);
  EXPECT_EQ(ledger.table.used(), 100u);
  EXPECT_EQ(held_of(ledger), (std::vector<std::uint64_t>{60, 40}));
  EXPECT_EQ(ledger.slots[1].denials, 1u);
  EXPECT_EQ(ledger.slots[1].grants, 1u);
}

TEST(LedgerTable, NeverRefusesToHoldLess) {
  LedgerInMemory ledger(100);
  ledger.join(0);
  ASSERT_EQ(ledger.table.resize(0, 100, kStart), Grant::granted);
  ledger.table.set_capacity(10);
  ledger.slots[0].limit_bytes = 5;
  EXPECT_EQ(ledger.table.resize(0, 99, kStart), Grant::granted);
  EXPECT_EQ(ledger.table.resize(0, 0, kStart), Grant::granted);
  EXPECT_EQ(ledger.table.used(), 0u);
}

TEST(LedgerTable, CountsNoMoreThanItsWordCanHold) {
  LedgerInMemory ledger(std::uint64_t{1} << 40);
  ledger.join(0);
  EXPECT_EQ(ledger.table.resize(0, LedgerWord::kMostGranules + 1, kStart), Grant::no_capacity);
  EXPECT_EQ(ledger.table.resize(0, std::uint64_t{1} << 60, kStart), Grant::no_capacity);
  EXPECT_EQ(ledger.table.resize(0, LedgerWord::kMostGranules, kStart), Grant::granted);
  EXPECT_EQ(ledger.table.used(), LedgerWord::kMostGranules);
}

TEST(LedgerTable, HelpsAnOperationWhoseOwnerDiedBehindTheCommit) {
  LedgerInMemory ledger(100);
  ledger.join(0);
  ledger.join(1);
  {
    const DeathAt death("held", 1);
    EXPECT_THROW((void)ledger.table.resize(0, 30, kStart), DeathAt::Died);
  }
  EXPECT_EQ(LedgerEntry::unpack(ledger.slots[0].held).granules, 0u);
  EXPECT_EQ(ledger.table.used(), 30u);
  expect_exact(ledger);
  EXPECT_EQ(ledger.table.resize(1, 71, kStart), Grant::no_capacity);
  EXPECT_EQ(LedgerEntry::unpack(ledger.slots[0].held).granules, 30u);
  EXPECT_EQ(ledger.table.resize(1, 70, kStart), Grant::granted);
  expect_exact(ledger);
}

TEST(LedgerTable, ForgetsAnOperationWhoseOwnerDiedBeforeTheCommit) {
  for (const char* const where : {"word", "own account", "capacity", "intent", "commit"}) {
    SCOPED_TRACE(where);
    LedgerInMemory ledger(100);
    ledger.join(0);
    ledger.join(1);
    {
      const DeathAt death(where, 1);
      EXPECT_THROW((void)ledger.table.resize(0, 30, kStart), DeathAt::Died);
    }
    EXPECT_EQ(ledger.table.used(), 0u);
    EXPECT_EQ(ledger.table.resize(1, 100, kStart), Grant::granted);
    ledger.clear(0, kStart);
    EXPECT_EQ(held_of(ledger), (std::vector<std::uint64_t>{0, 100}));
    expect_exact(ledger);
  }
}

TEST(LedgerTable, GivesBackWhatADeadLeaseHeldWhereverItDied) {
  for (const char* const where :
       {"word", "own account", "account", "another's intent", "held", "intent", "commit"}) {
    for (int visit = 1; visit <= 3; ++visit) {
      SCOPED_TRACE(std::string(where) + " " + std::to_string(visit));
      LedgerInMemory ledger(100);
      ledger.join(0);
      ledger.join(1);
      (void)ledger.table.resize(1, 5, kStart);
      try {
        const DeathAt death(where, visit);
        for (const std::uint64_t granules : {10, 40, 20, 60}) {
          (void)ledger.table.resize(0, granules, kStart);
        }
      } catch (const DeathAt::Died&) {
      }
      ledger.clear(0, kStart);
      EXPECT_EQ(held_of(ledger), (std::vector<std::uint64_t>{0, 5}));
      EXPECT_EQ(ledger.table.used(), 5u);
    }
  }
}

TEST(LedgerTable, StaysExactWhereTheSweeperDiesToo) {
  for (const char* const where : {"own account", "intent", "commit", "held"}) {
    SCOPED_TRACE(where);
    LedgerInMemory ledger(100);
    ledger.join(0);
    (void)ledger.table.resize(0, 70, kStart);
    {
      const DeathAt death(where, 1);
      EXPECT_THROW(ledger.clear(0, kStart), DeathAt::Died);
    }
    expect_exact(ledger);
    ledger.clear(0, kStart);
    EXPECT_EQ(ledger.table.used(), 0u);
    EXPECT_EQ(ledger.table.held(0), 0u);
  }
}

TEST(LedgerTable, CountsOnWhereTheSequenceWraps) {
  LedgerInMemory ledger(100);
  ledger.join(0);
  ledger.join(1);
  ledger.set_sequence(LedgerWord::kSequenceMask - 5);
  for (std::uint64_t step = 0; step < 12; ++step) {
    ASSERT_EQ(ledger.table.resize(step % 2, 10 + step, kStart), Grant::granted);
    expect_exact(ledger);
  }
  EXPECT_EQ(held_of(ledger), (std::vector<std::uint64_t>{20, 21}));
  EXPECT_LT(LedgerWord::unpack(ledger.header.word).sequence, 10u);
}

// The lease moved last exactly one turn of the sequence ago: its account bears the number that its
// next operation would.
TEST(LedgerTable, IsNotMistakenAboutALeaseThatMovedOneTurnAgo) {
  LedgerInMemory ledger(100);
  ledger.join(0);
  ASSERT_EQ(ledger.table.resize(0, 10, kStart), Grant::granted);
  ledger.set_sequence(LedgerEntry::unpack(ledger.slots[0].held).sequence - 1);
  ASSERT_EQ(ledger.table.resize(0, 25, kStart), Grant::granted);
  EXPECT_EQ(ledger.table.held(0), 25u);
  expect_exact(ledger);
}

TEST(LedgerTable, RefusesByALoweredCapacityAtOnce) {
  LedgerInMemory ledger(100);
  ledger.join(0);
  (void)ledger.table.resize(0, 50, kStart);
  ledger.table.set_capacity(40);
  EXPECT_EQ(ledger.table.resize(0, 51, kStart), Grant::no_capacity);
  EXPECT_EQ(ledger.table.grantable(0, kStart), 0u);
  ledger.table.set_capacity(60);
  EXPECT_EQ(ledger.table.grantable(0, kStart), 10u);
  EXPECT_EQ(ledger.table.resize(0, 60, kStart), Grant::granted);
}

// Somebody has read the old capacity and is about to grant by it.
TEST(LedgerTable, GrantsNothingByACapacityThatIsNoMore) {
  static LedgerInMemory* lowered = nullptr;
  for (const char* const where : {"intent", "commit"}) {
    SCOPED_TRACE(where);
    LedgerInMemory ledger(100);
    ledger.join(0);
    lowered = &ledger;
    static std::string place;
    place = where;
    LedgerTable::set_probe([](const char* found) {
      if (place != found) return;
      LedgerTable::set_probe(nullptr);
      lowered->table.set_capacity(50);
    });
    EXPECT_EQ(ledger.table.resize(0, 51, kStart), Grant::no_capacity);
    LedgerTable::set_probe(nullptr);
  }
}

TEST(LedgerTable, FinishesACapacityChangeWhoseAuthorDied) {
  static LedgerInMemory* dying = nullptr;
  LedgerInMemory ledger(100);
  ledger.join(0);
  dying = &ledger;
  // Between the growing lease's look at the capacity and its commit, one process stores the lower
  // capacity and dies, and another finishes the change.
  LedgerTable::set_probe([](const char* found) {
    if (std::string(found) != "commit") return;
    LedgerTable::set_probe(nullptr);
    {
      const DeathAt death("commit", 1);
      EXPECT_THROW(dying->table.set_capacity(50), DeathAt::Died);
    }
    dying->table.set_capacity(50);
  });
  EXPECT_EQ(ledger.table.resize(0, 51, kStart), Grant::no_capacity);
  LedgerTable::set_probe(nullptr);
  EXPECT_EQ(ledger.table.used(), 0u);
}

TEST(LedgerTable, HoldsALeaseToItsLimit) {
  LedgerInMemory ledger(100);
  ledger.join(0).limit_bytes = 30;
  EXPECT_EQ(ledger.table.resize(0, 31, kStart), Grant::over_limit);
  EXPECT_EQ(ledger.table.grantable(0, kStart), 30u);
  EXPECT_EQ(ledger.table.resize(0, 30, kStart), Grant::granted);
}

TEST(LedgerTable, HoldsAGroupToItsLimit) {
  LedgerInMemory ledger(100);
  for (const std::uint32_t member : {0U, 1U}) {
    ledger.join(member).facts.group_id = 9;
    ledger.slots[member].group_limit_bytes = 50;
  }
  ledger.join(2);
  ASSERT_EQ(ledger.table.resize(0, 30, kStart), Grant::granted);
  EXPECT_EQ(ledger.table.resize(1, 21, kStart), Grant::over_limit);
  EXPECT_EQ(ledger.table.grantable(1, kStart), 20u);
  EXPECT_EQ(ledger.table.resize(1, 20, kStart), Grant::granted);
  EXPECT_EQ(ledger.table.resize(2, 50, kStart), Grant::granted);
}

TEST(LedgerTable, KeepsWhatWasFreedForAWaiterFromAThird) {
  LedgerInMemory ledger(100);
  for (const std::uint32_t index : {0U, 1U, 2U}) ledger.join(index);
  ledger.use(0, 70, kStart);
  ledger.use(1, 30, kStart);
  ASSERT_EQ(ledger.ask(2, 20, kStart), Grant::no_capacity);
  EXPECT_EQ(ledger.table.ruling(2, kStart).promised, 20u);
  EXPECT_EQ(ledger.table.ruling(0, kStart).hard_pressure, 20u);
  EXPECT_EQ(ledger.table.ruling(1, kStart).hard_pressure, 0u);
  ledger.use(0, 50, kStart);
  // The third has its part, wants more, and finds free memory that is not for it.
  ledger.table.want(1, 90, kStart);
  EXPECT_EQ(ledger.table.grantable(1, kStart), 10u);
  EXPECT_EQ(ledger.ask(1, 45, kStart), Grant::promised);
  EXPECT_EQ(ledger.ask(0, 60, kStart), Grant::promised);
  EXPECT_EQ(ledger.table.grantable(2, kStart), 20u);
  EXPECT_EQ(ledger.ask(2, 20, kStart), Grant::granted);
}

TEST(LedgerTable, LetsAStrangerHaveWhatIsNotPromised) {
  LedgerInMemory ledger(100);
  for (const std::uint32_t index : {0U, 1U, 2U}) ledger.join(index);
  ledger.use(0, 95, kStart);
  ASSERT_EQ(ledger.ask(1, 15, kStart), Grant::no_capacity);
  ledger.use(0, 60, kStart);
  EXPECT_EQ(ledger.table.grantable(0, kStart), 25u);
  EXPECT_EQ(ledger.table.resize(0, 86, kStart), Grant::promised);
  EXPECT_EQ(ledger.table.resize(0, 85, kStart), Grant::granted);
}

TEST(LedgerTable, SaysGrantableWhatItThenGrants) {
  constexpr std::uint64_t kSeeds = kFast ? 2000 : 100;
  for (std::uint64_t seed = first_seed(); seed < first_seed() + kSeeds; ++seed) {
    SCOPED_TRACE(describe_seed(seed));
    Dice dice(seed);
    const std::uint64_t capacity = dice.between(50, 2000);
    LedgerInMemory ledger(capacity);
    const std::uint32_t leases = dice.between(1, 12);
    for (std::uint32_t index = 0; index < leases; ++index) {
      LeaseSlot& slot = ledger.join(index, dice.between(1, 30) / 10.0);
      if (dice.chance(30)) slot.limit_bytes = dice.between(1, 1000);
      slot.facts.group_id = dice.between(100, 102);
      if (slot.facts.group_id == 100) slot.group_limit_bytes = 300;
      if (dice.chance(20)) slot.floor_bytes = dice.between(0, 100);
    }
    for (int step = 0; step < 40; ++step) {
      const std::uint32_t index = dice.between(0, leases - 1);
      if (dice.chance(50)) {
        (void)ledger.ask(index, dice.between(0, 500), kStart);
      } else {
        ledger.table.want(index, dice.between(0, 500), kStart);
      }
      const std::uint32_t asking = dice.between(0, leases - 1);
      const std::uint64_t held = ledger.table.held(asking);
      const std::uint64_t more = ledger.table.grantable(asking, kStart);
      ASSERT_NE(ledger.table.resize(asking, held + more + 1, kStart), Grant::granted);
      ASSERT_EQ(ledger.table.resize(asking, held + more, kStart), Grant::granted);
      (void)ledger.table.resize(asking, held, kStart);
      expect_exact(ledger);
    }
  }
}

TEST(LedgerTable, IsCalmAgainASecondAfterTheLastUnmetNeed) {
  LedgerInMemory ledger(100);
  ledger.join(0);
  ledger.join(1);
  ledger.use(0, 80, kStart);
  ASSERT_EQ(ledger.ask(1, 40, kStart), Grant::no_capacity);
  EXPECT_NE(ledger.header.contended, 0u);
  // The need is not repeated, and is believed for a while.
  for (std::uint64_t now = kStart; now < kStart + kSecond / 2; now += kSecond / 20) {
    (void)ledger.table.ruling(0, now);
    ASSERT_NE(ledger.header.contended, 0u) << now - kStart;
  }
  (void)ledger.table.ruling(0, kStart + kSecond);
  EXPECT_EQ(ledger.header.contended, 0u);
  EXPECT_EQ(ledger.table.resize(0, 100, kStart + kSecond), Grant::granted);
}

TEST(LedgerTable, IsNotCalmWhileWhoGotItsPartWouldHaveMore) {
  LedgerInMemory ledger(100);
  ledger.join(0);
  ledger.join(1);
  ledger.use(0, 50, kStart);
  ledger.use(1, 50, kStart);
  ASSERT_EQ(ledger.ask(0, 70, kStart), Grant::no_capacity);
  ledger.table.want(1, 50, kStart);
  (void)ledger.table.ruling(1, kStart);
  EXPECT_NE(ledger.header.contended, 0u);
  // What the other frees between two of its requests stays its own.
  ledger.use(1, 40, kStart);
  EXPECT_EQ(ledger.ask(0, 60, kStart), Grant::promised);
  EXPECT_EQ(ledger.ask(1, 50, kStart), Grant::granted);
}

TEST(LedgerTable, CanBeContendedAgainAtOnce) {
  LedgerInMemory ledger(100);
  ledger.join(0);
  ledger.join(1);
  ledger.table.contend(kStart);
  const std::uint32_t seen = ledger.header.contended;
  (void)ledger.table.ruling(0, kStart);
  EXPECT_EQ(ledger.header.contended, 0u);
  ledger.table.contend(kStart);
  EXPECT_NE(ledger.header.contended, 0u);
  EXPECT_GE(ledger.header.contended, seen);
}

TEST(LedgerTable, BelievesANeedFor300MillisecondsAndItsPeakForASecond) {
  LedgerInMemory ledger(100);
  ledger.join(0);
  ledger.table.want(0, 60, kStart);
  const auto tenant_at = [&](std::uint64_t now) {
    std::vector<Tenant> tenants;
    std::vector<Ruling> rulings;
    ledger.table.judge_all(now, &tenants, &rulings);
    return tenants[0];
  };
  EXPECT_EQ(tenant_at(kStart + kSecond / 4).wanted, 60u);
  EXPECT_EQ(tenant_at(kStart + kSecond / 3).wanted, 0u);
  EXPECT_EQ(tenant_at(kStart + kSecond * 3 / 4 - 1).demand, 60u);
  EXPECT_EQ(tenant_at(kStart + kSecond).demand, 0u);
}

TEST(LedgerTable, TakesOneRequestAtMostAnEqualShareForTheDefaultFloor) {
  LedgerInMemory ledger(100);
  ledger.join(0, 1.0, LeaseSlot::kDefaultFloor).longest = 30;
  ledger.join(1, 1.0, LeaseSlot::kDefaultFloor).longest = 80;
  std::vector<Tenant> tenants;
  std::vector<Ruling> rulings;
  ledger.table.judge_all(kStart, &tenants, &rulings);
  EXPECT_EQ(tenants[0].floor, 30u);
  EXPECT_EQ(tenants[1].floor, 50u);
}

TEST(LedgerTable, RingsWhoOwesAndNobodyElse) {
  LedgerInMemory ledger(100);
  for (const std::uint32_t index : {0U, 1U, 2U}) ledger.join(index);
  ledger.use(0, 80, kStart);
  ledger.use(1, 20, kStart);
  ASSERT_EQ(ledger.ask(2, 20, kStart), Grant::no_capacity);
  EXPECT_EQ(ledger.slots[0].bell, 1u);
  EXPECT_EQ(ledger.slots[1].bell, 0u);
  EXPECT_EQ(ledger.slots[2].bell, 0u);
}

TEST(LedgerTable, TellsThatMemoryWasFreedWhileSomebodyWaits) {
  LedgerInMemory ledger(100);
  ledger.join(0);
  ledger.join(1);
  ledger.use(0, 100, kStart);
  const std::uint32_t before = ledger.header.epoch;
  (void)ledger.table.resize(0, 90, kStart);
  EXPECT_EQ(ledger.header.epoch, before);
  ASSERT_EQ(ledger.ask(1, 20, kStart), Grant::no_capacity);
  (void)ledger.table.resize(0, 80, kStart);
  EXPECT_EQ(ledger.header.epoch, before + 1);
}

TEST(RecentPeak, IsForgottenASecondLaterAndSurvivesASmallerNeed) {
  RecentPeak peak;
  peak.note(50, kStart);
  peak.note(10, kStart + kSecond / 10);
  peak.note(5, kStart + kSecond / 2);
  EXPECT_EQ(peak.peak(kStart + kSecond / 2), 50u);
  EXPECT_EQ(peak.peak(kStart + kSecond), 5u);
  EXPECT_EQ(peak.peak(kStart + 2 * kSecond), 0u);
}

}  // namespace
}  // namespace kvcached
