#include "kvcached/policy.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <vector>

#include "test_seed.hpp"

namespace kvcached {
namespace {

constexpr int kRounds = 3000;

std::vector<Ruling> entitled(const std::vector<Tenant>& tenants, std::uint64_t capacity) {
  std::vector<Ruling> rulings(tenants.size());
  entitle(tenants, capacity, rulings);
  return rulings;
}

std::vector<Ruling> ruled(const std::vector<Tenant>& tenants, std::uint64_t capacity) {
  std::vector<Ruling> rulings = entitled(tenants, capacity);
  press(tenants, capacity, rulings);
  return rulings;
}

std::uint64_t total(const std::vector<Ruling>& rulings, std::uint64_t Ruling::* member) {
  std::uint64_t sum = 0;
  for (const Ruling& ruling : rulings) sum += ruling.*member;
  return sum;
}

Tenant wants(std::uint64_t demand, double weight = 1.0) {
  return {.wanted = demand, .demand = demand, .weight = weight};
}

// Holds everything in blocks in use and wants more.
Tenant uses(std::uint64_t held, std::uint64_t wanted) {
  return {.held = held, .wanted = wanted, .demand = wanted, .live = held};
}

// Everything that a set of leases can look like, floors that fit.
std::vector<Tenant> random_tenants(Dice& dice, std::uint64_t capacity) {
  std::vector<Tenant> tenants(dice.between(1, 20));
  std::map<std::uint32_t, std::uint64_t> group_limits;
  auto left = static_cast<std::uint32_t>(capacity);
  for (Tenant& tenant : tenants) {
    tenant.held = dice.between(0, static_cast<std::uint32_t>(capacity / tenants.size()));
    tenant.live = dice.between(0, static_cast<std::uint32_t>(tenant.held));
    tenant.keep = dice.chance(30) ? dice.between(0, static_cast<std::uint32_t>(tenant.live)) : 0;
    tenant.wanted = std::max<std::uint64_t>(
        tenant.live, dice.chance(70) ? dice.between(0, static_cast<std::uint32_t>(capacity)) : 0);
    tenant.demand = tenant.wanted + (dice.chance(30) ? dice.between(0, 100) : 0);
    tenant.weight = dice.between(1, 4000) / 1000.0;
    if (dice.chance(30)) tenant.limit = dice.between(0, static_cast<std::uint32_t>(capacity));
    if (dice.chance(40)) {
      tenant.floor = dice.between(0, left);
      left -= static_cast<std::uint32_t>(tenant.floor);
    }
    tenant.group = dice.between(0, 3);
    if (dice.chance(20)) tenant.leaving = dice.between(0, static_cast<std::uint32_t>(tenant.held));
  }
  for (std::uint32_t group = 0; group < 4; ++group) {
    if (dice.chance(30)) {
      group_limits[group] = dice.between(1, static_cast<std::uint32_t>(capacity));
    }
  }
  for (Tenant& tenant : tenants) {
    if (const auto found = group_limits.find(tenant.group); found != group_limits.end()) {
      tenant.group_limit = found->second;
    }
  }
  return tenants;
}

template <typename Check>
void for_random_tenants(Check check) {
  for (std::uint64_t seed = first_seed(); seed < first_seed() + kRounds; ++seed) {
    SCOPED_TRACE(describe_seed(seed));
    Dice dice(seed);
    const std::uint64_t capacity = dice.between(1, 100'000);
    check(random_tenants(dice, capacity), capacity);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Entitlement, IsDemandWhereAllFits) {
  const auto rulings = entitled({wants(10), wants(20), wants(30)}, 60);
  EXPECT_EQ(rulings[0].entitlement, 10u);
  EXPECT_EQ(rulings[1].entitlement, 20u);
  EXPECT_EQ(rulings[2].entitlement, 30u);
}

TEST(Entitlement, LeavesWhatTheModestDoNotNeedToTheOthers) {
  const auto rulings = entitled({wants(10), wants(100), wants(100)}, 90);
  EXPECT_EQ(rulings[0].entitlement, 10u);
  EXPECT_EQ(rulings[1].entitlement, 40u);
  EXPECT_EQ(rulings[2].entitlement, 40u);
}

TEST(Entitlement, FollowsWeightsWithinAGranule) {
  const auto rulings = entitled({wants(10'000, 1.0), wants(10'000, 2.0), wants(10'000, 0.5)}, 7000);
  EXPECT_NEAR(static_cast<double>(rulings[0].entitlement), 2000.0, 1.0);
  EXPECT_NEAR(static_cast<double>(rulings[1].entitlement), 4000.0, 1.0);
  EXPECT_NEAR(static_cast<double>(rulings[2].entitlement), 1000.0, 1.0);
}

TEST(Entitlement, GivesFloorsBeforeShares) {
  std::vector<Tenant> tenants{wants(100, 0.01), wants(100), wants(100)};
  tenants[0].floor = 50;
  const auto rulings = entitled(tenants, 100);
  EXPECT_EQ(rulings[0].entitlement, 50u);
  EXPECT_EQ(rulings[1].entitlement, 25u);
  EXPECT_EQ(rulings[2].entitlement, 25u);
}

TEST(Entitlement, DoesNotGiveAFloorToWhoDoesNotNeedIt) {
  std::vector<Tenant> tenants{wants(10), wants(100)};
  tenants[0].floor = 50;
  const auto rulings = entitled(tenants, 100);
  EXPECT_EQ(rulings[0].entitlement, 10u);
  EXPECT_EQ(rulings[1].entitlement, 90u);
}

TEST(Entitlement, MeetsFloorsThatFitExactly) {
  for (std::uint64_t first = 0; first <= 1000; first += 7) {
    std::vector<Tenant> tenants{wants(2000), wants(2000), wants(2000)};
    tenants[0].floor = first;
    tenants[1].floor = 1000 - first;
    const auto rulings = entitled(tenants, 1000);
    EXPECT_EQ(rulings[0].entitlement, first);
    EXPECT_EQ(rulings[1].entitlement, 1000 - first);
  }
}

TEST(Entitlement, SharesInProportionWhereFloorsNoLongerFit) {
  std::vector<Tenant> tenants{wants(100), wants(300), wants(500)};
  tenants[0].floor = 100;
  tenants[1].floor = 300;
  const auto rulings = entitled(tenants, 200);
  EXPECT_NEAR(static_cast<double>(rulings[0].entitlement), 50.0, 1.0);
  EXPECT_NEAR(static_cast<double>(rulings[1].entitlement), 150.0, 1.0);
  EXPECT_EQ(rulings[2].entitlement, 0u);
}

TEST(Entitlement, SharesAGroupsLimitAmongItsMembers) {
  std::vector<Tenant> tenants{wants(100), wants(100), wants(100)};
  tenants[0].group = tenants[1].group = 7;
  tenants[0].group_limit = tenants[1].group_limit = 40;
  const auto rulings = entitled(tenants, 200);
  EXPECT_EQ(rulings[0].entitlement, 20u);
  EXPECT_EQ(rulings[1].entitlement, 20u);
  EXPECT_EQ(rulings[2].entitlement, 100u);
}

TEST(Entitlement, IsNothingOfNothing) {
  EXPECT_TRUE(entitled({}, 100).empty());
  EXPECT_EQ(entitled({wants(10)}, 0)[0].entitlement, 0u);
}

TEST(Entitlement, FitsAndKeepsEveryBound) {
  for_random_tenants([](const std::vector<Tenant>& tenants, std::uint64_t capacity) {
    const auto rulings = entitled(tenants, capacity);
    EXPECT_LE(total(rulings, &Ruling::entitlement), capacity);
    std::map<std::uint32_t, std::uint64_t> of_group;
    for (std::size_t index = 0; index < tenants.size(); ++index) {
      const Tenant& tenant = tenants[index];
      EXPECT_LE(rulings[index].entitlement, std::min(tenant.limit, tenant.demand));
      of_group[tenant.group] += rulings[index].entitlement;
      if (tenant.group_limit != kNoLimit) {
        EXPECT_LE(of_group[tenant.group], tenant.group_limit);
      } else {
        EXPECT_GE(rulings[index].entitlement,
                  std::min({tenant.floor, tenant.limit, tenant.demand}));
      }
    }
  });
}

// Max-min: who gets less than it could use has no less for its weight than anybody who has more
// than a floor; and nothing is left over while somebody could use it.
TEST(Entitlement, LeavesNobodyBehindWhoCouldUseMore) {
  for_random_tenants([](std::vector<Tenant> tenants, std::uint64_t capacity) {
    for (Tenant& tenant : tenants) tenant.group_limit = kNoLimit;
    const auto rulings = entitled(tenants, capacity);
    bool short_of = false;
    for (std::size_t index = 0; index < tenants.size(); ++index) {
      const Tenant& tenant = tenants[index];
      const std::uint64_t most = std::min(tenant.demand, tenant.limit);
      if (rulings[index].entitlement >= most) continue;
      short_of = true;
      const double mine = static_cast<double>(rulings[index].entitlement + 1) / tenant.weight;
      for (std::size_t other = 0; other < tenants.size(); ++other) {
        const std::uint64_t theirs = rulings[other].entitlement;
        if (theirs <= tenants[other].floor) continue;
        EXPECT_LE(static_cast<double>(theirs - 1) / tenants[other].weight, mine * 1.0001)
            << index << " has " << rulings[index].entitlement << ", " << other << " " << theirs;
      }
    }
    if (short_of) {
      EXPECT_GE(total(rulings, &Ruling::entitlement) + tenants.size(), capacity);
    }
  });
}

TEST(Entitlement, HoldsWeightsWithinFivePercentUnderSaturation) {
  for (std::uint64_t seed = first_seed(); seed < first_seed() + kRounds; ++seed) {
    SCOPED_TRACE(describe_seed(seed));
    Dice dice(seed);
    const std::uint64_t capacity = dice.between(10'000, 1'000'000);
    std::vector<Tenant> tenants;
    double weights = 0;
    for (std::uint32_t count = dice.between(2, 16); count > 0; --count) {
      tenants.push_back(wants(capacity, dice.between(250, 4000) / 1000.0));
      weights += tenants.back().weight;
    }
    const auto rulings = entitled(tenants, capacity);
    for (std::size_t index = 0; index < tenants.size(); ++index) {
      const double fair = static_cast<double>(capacity) * tenants[index].weight / weights;
      ASSERT_NEAR(static_cast<double>(rulings[index].entitlement), fair, fair * 0.05);
    }
  }
}

TEST(Entitlement, NeverFallsWhereThereIsMore) {
  for_random_tenants([](const std::vector<Tenant>& tenants, std::uint64_t capacity) {
    const auto less = entitled(tenants, capacity);
    const auto more = entitled(tenants, capacity + capacity / 2);
    for (std::size_t index = 0; index < tenants.size(); ++index) {
      EXPECT_GE(more[index].entitlement + 1, less[index].entitlement);
    }
  });
}

TEST(Pressure, IsNoneWhereNobodyWaits) {
  const auto rulings = ruled({uses(60, 60), uses(40, 40)}, 100);
  EXPECT_EQ(total(rulings, &Ruling::soft_pressure), 0u);
  EXPECT_EQ(total(rulings, &Ruling::hard_pressure), 0u);
}

TEST(Pressure, IsNoneWhereWhatIsFreeSuffices) {
  const auto rulings = ruled({uses(60, 60), uses(0, 20)}, 100);
  EXPECT_EQ(rulings[1].promised, 20u);
  EXPECT_EQ(total(rulings, &Ruling::soft_pressure), 0u);
  EXPECT_EQ(total(rulings, &Ruling::hard_pressure), 0u);
}

TEST(Pressure, AsksSlackAndCacheInProportionAndOnlyForWhatIsWanted) {
  std::vector<Tenant> tenants{uses(60, 60), uses(40, 40), uses(0, 12)};
  tenants[0].live = tenants[0].demand = tenants[0].wanted = 20;  // 40 to give
  tenants[1].live = tenants[1].demand = tenants[1].wanted = 20;  // 20 to give
  const auto rulings = ruled(tenants, 100);
  EXPECT_EQ(rulings[0].soft_pressure, 8u);
  EXPECT_EQ(rulings[1].soft_pressure, 4u);
  EXPECT_EQ(total(rulings, &Ruling::hard_pressure), 0u);
}

TEST(Pressure, ReachesAllSlackAndCacheAboveTheOthersEntitlements) {
  std::vector<Tenant> tenants{uses(80, 10), uses(20, 20), uses(0, 200)};
  tenants[0].live = 10;
  const auto rulings = ruled(tenants, 100);
  EXPECT_EQ(rulings[0].soft_pressure, 70u);
  EXPECT_EQ(rulings[1].soft_pressure + rulings[1].hard_pressure, 0u);
}

TEST(Pressure, TakesBlocksInUseOnlyWhenCacheIsNotEnough) {
  std::vector<Tenant> tenants{uses(100, 100), uses(0, 100)};
  tenants[0].live = 80;
  const auto rulings = ruled(tenants, 100);
  EXPECT_EQ(rulings[0].entitlement, 50u);
  EXPECT_EQ(rulings[0].soft_pressure, 20u);
  EXPECT_EQ(rulings[0].hard_pressure, 30u);
}

TEST(Pressure, LeavesRequestsAloneWithinTheDeadBand) {
  // Entitled to 512 each; a sixteenth of it is 32.
  EXPECT_EQ(ruled({uses(544, 544), uses(480, 1000)}, 1024)[0].hard_pressure, 0u);
  EXPECT_EQ(ruled({uses(545, 545), uses(479, 1000)}, 1024)[0].hard_pressure, 33u);
}

TEST(Pressure, ForAFloorHeedsNoDeadBand) {
  std::vector<Tenant> tenants{uses(520, 1000), uses(504, 1000)};
  tenants[1].floor = 512;
  const auto rulings = ruled(tenants, 1024);
  EXPECT_EQ(rulings[0].hard_pressure, 8u);
}

TEST(Pressure, LeavesWhatATenantCannotDoWithout) {
  std::vector<Tenant> tenants{uses(100, 100), uses(0, 100)};
  tenants[0].keep = 90;
  const auto rulings = ruled(tenants, 100);
  EXPECT_EQ(rulings[0].soft_pressure, 0u);
  EXPECT_EQ(rulings[0].hard_pressure, 10u);
}

TEST(Pressure, CountsWhatIsLeavingAlready) {
  std::vector<Tenant> tenants{uses(100, 20), uses(0, 60)};
  tenants[0].live = 20;
  tenants[0].leaving = 25;
  EXPECT_EQ(ruled(tenants, 100)[0].soft_pressure, 35u);
  tenants[0].leaving = 70;
  EXPECT_EQ(ruled(tenants, 100)[0].soft_pressure, 0u);
}

TEST(Pressure, AsksADeficitBackThoughNobodyWaits) {
  std::vector<Tenant> tenants{uses(60, 60), uses(40, 40)};
  tenants[0].live = 55;
  const auto rulings = ruled(tenants, 80);
  EXPECT_EQ(rulings[0].entitlement, 40u);
  EXPECT_EQ(rulings[0].soft_pressure, 5u);
  EXPECT_EQ(rulings[0].hard_pressure, 15u);
  EXPECT_EQ(rulings[1].soft_pressure + rulings[1].hard_pressure, 0u);
}

TEST(Pressure, OfALoweredLimitComesAtOnceAndAlone) {
  std::vector<Tenant> tenants{uses(60, 60), uses(20, 20)};
  tenants[0].live = 50;
  tenants[0].limit = 30;
  const auto rulings = ruled(tenants, 100);
  EXPECT_EQ(rulings[0].soft_pressure, 10u);
  EXPECT_EQ(rulings[0].hard_pressure, 20u);
  EXPECT_EQ(rulings[1].soft_pressure + rulings[1].hard_pressure, 0u);
}

TEST(Pressure, OfALoweredLimitLeavesWhatATenantCannotDoWithout) {
  std::vector<Tenant> tenants{uses(60, 60)};
  tenants[0].limit = 30;
  tenants[0].keep = 40;
  EXPECT_EQ(ruled(tenants, 100)[0].hard_pressure, 20u);
}

TEST(Pressure, OfALoweredGroupLimitIsSharedByItsMembers) {
  std::vector<Tenant> tenants{uses(60, 60), uses(30, 30), uses(10, 10)};
  for (const std::size_t index : {0, 1}) {
    tenants[index].group = 7;
    tenants[index].group_limit = 60;
    tenants[index].live = 0;
    tenants[index].wanted = tenants[index].demand = 0;
  }
  const auto rulings = ruled(tenants, 100);
  EXPECT_EQ(rulings[0].soft_pressure, 20u);
  EXPECT_EQ(rulings[1].soft_pressure, 10u);
  EXPECT_EQ(rulings[2].soft_pressure, 0u);
}

TEST(Pressure, IsNoneWhereNobodyIsAboveItsPart) {
  // Everybody wants more than its part and has about that: a static split.
  const auto rulings = ruled({uses(50, 90), uses(50, 90)}, 100);
  EXPECT_EQ(total(rulings, &Ruling::soft_pressure), 0u);
  EXPECT_EQ(total(rulings, &Ruling::hard_pressure), 0u);
}

TEST(Pressure, NeverReachesBelowAnEntitlementOrWhatMustBeKept) {
  for_random_tenants([](std::vector<Tenant> tenants, std::uint64_t capacity) {
    for (Tenant& tenant : tenants) tenant.limit = kNoLimit;
    const auto rulings = ruled(tenants, capacity);
    for (std::size_t index = 0; index < tenants.size(); ++index) {
      const Tenant& tenant = tenants[index];
      const std::uint64_t least = std::max(rulings[index].entitlement, tenant.keep);
      const std::uint64_t asked = rulings[index].soft_pressure + rulings[index].hard_pressure;
      EXPECT_LE(asked, tenant.held > least ? tenant.held - least : 0);
      EXPECT_LE(rulings[index].soft_pressure, tenant.held - tenant.live);
    }
  });
}

TEST(Pressure, AsksForNoMoreThanIsWantedAndNotFree) {
  for_random_tenants([](std::vector<Tenant> tenants, std::uint64_t capacity) {
    for (Tenant& tenant : tenants) tenant.limit = tenant.group_limit = kNoLimit;
    const auto rulings = ruled(tenants, capacity);
    std::uint64_t wanted = 0;
    std::uint64_t used = 0;
    std::uint64_t slack = 0;
    std::uint64_t leaving = 0;
    for (std::size_t index = 0; index < tenants.size(); ++index) {
      const Tenant& tenant = tenants[index];
      used += tenant.held;
      leaving += tenant.leaving;
      if (tenant.wanted > tenant.held) {
        wanted += std::min(tenant.wanted - tenant.held, rulings[index].promised);
      }
      const std::uint64_t least = std::max(rulings[index].entitlement, tenant.keep);
      if (tenant.held > least) slack += std::min(tenant.held - least, tenant.held - tenant.live);
    }
    ASSERT_LE(used, capacity);
    const std::uint64_t need = wanted - std::min(wanted, capacity - used);
    const std::uint64_t soft = total(rulings, &Ruling::soft_pressure);
    // Everybody's part is rounded up to a granule.
    EXPECT_LE(soft + total(rulings, &Ruling::hard_pressure), need + 2 * tenants.size());
    EXPECT_GE(soft + leaving, std::min(need, slack));
  });
}

}  // namespace
}  // namespace kvcached
