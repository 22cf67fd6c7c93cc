#include "kvcached/policy.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace kvcached {

namespace {

// Above its entitlement by less than this part of it, a tenant's requests are left alone.
constexpr std::uint64_t kDeadBand = 16;

std::uint64_t above(std::uint64_t value, std::uint64_t bound) {
  return value > bound ? value - bound : 0;
}

struct Claim {
  std::uint64_t least = 0;
  std::uint64_t most = 0;
  double weight = 1.0;
};

double filled(const Claim& claim, double level) {
  return std::clamp(level * claim.weight, static_cast<double>(claim.least),
                    static_cast<double>(claim.most));
}

// Fills everybody to min(most, max(least, level * weight)) for the highest level that fits.
void fill(std::vector<Claim>& claims, std::uint64_t capacity, std::vector<std::uint64_t>& shares) {
  std::uint64_t most = 0;
  std::uint64_t least = 0;
  for (const Claim& claim : claims) {
    most += claim.most;
    least += claim.least;
  }
  if (most <= capacity) {
    for (std::size_t index = 0; index < claims.size(); ++index) shares[index] = claims[index].most;
    return;
  }
  if (least > capacity) {
    // Guarantees were checked against a larger device; each gets its part of what there is.
    for (std::size_t index = 0; index < claims.size(); ++index) {
      const double part = static_cast<double>(claims[index].least) / static_cast<double>(least);
      shares[index] = static_cast<std::uint64_t>(part * static_cast<double>(capacity));
    }
    return;
  }
  // The sum grows piecewise linearly with the level; between two bends the level is exact.
  std::vector<double> bends;
  bends.reserve(2 * claims.size());
  for (const Claim& claim : claims) {
    bends.push_back(static_cast<double>(claim.least) / claim.weight);
    bends.push_back(static_cast<double>(claim.most) / claim.weight);
  }
  std::sort(bends.begin(), bends.end());
  const auto sum = [&claims](double level) {
    double total = 0;
    for (const Claim& claim : claims) total += filled(claim, level);
    return total;
  };
  const double target = static_cast<double>(capacity);
  const auto bend = std::partition_point(bends.begin(), bends.end(),
                                         [&](double level) { return sum(level) <= target; });
  const double low = bend == bends.begin() ? 0.0 : *std::prev(bend);
  double level = low;
  if (bend != bends.end() && *bend > low) {
    const double at_low = sum(low);
    const double slope = (sum(*bend) - at_low) / (*bend - low);
    if (slope > 0) level = low + (target - at_low) / slope;
  }
  for (std::size_t index = 0; index < claims.size(); ++index) {
    // Rounded down, so that the sum stays within the capacity. A thousandth of a granule is
    // arithmetic, not memory.
    shares[index] = static_cast<std::uint64_t>(filled(claims[index], level) + 1e-3);
  }
}

// Takes `need` from the parts in proportion, rounded up; returns what could not be had.
std::uint64_t take_in_proportion(std::uint64_t need, const std::vector<std::uint64_t>& parts,
                                 std::vector<std::uint64_t>* taken) {
  std::uint64_t total = 0;
  for (const std::uint64_t part : parts) total += part;
  if (need == 0 || total == 0) return need;
  const std::uint64_t wanted = std::min(need, total);
  const double ratio = static_cast<double>(wanted) / static_cast<double>(total);
  for (std::size_t index = 0; index < parts.size(); ++index) {
    const auto part =
        static_cast<std::uint64_t>(std::ceil(ratio * static_cast<double>(parts[index])));
    (*taken)[index] += std::min(part, parts[index]);
  }
  return need - wanted;
}

// A group above its limit gives back whether anybody waits or not, and its members to each other
// within it.
void press_groups(std::span<const Tenant> tenants, std::span<const Ruling> rulings,
                  const std::vector<std::uint64_t>& soft, const std::vector<std::uint64_t>& hard,
                  std::vector<std::uint64_t>* from_soft, std::vector<std::uint64_t>* from_hard) {
  std::vector<bool> done(tenants.size(), false);
  for (std::size_t first = 0; first < tenants.size(); ++first) {
    if (done[first] || tenants[first].group_limit == kNoLimit) continue;
    std::vector<std::uint64_t> soft_parts(tenants.size());
    std::vector<std::uint64_t> hard_parts(tenants.size());
    // What its members hold, and what those below their part of the limit want.
    std::uint64_t claimed = 0;
    for (std::size_t index = first; index < tenants.size(); ++index) {
      if (tenants[index].group != tenants[first].group) continue;
      done[index] = true;
      claimed += tenants[index].held + std::min(rulings[index].promised,
                                                above(tenants[index].wanted, tenants[index].held));
      soft_parts[index] = soft[index];
      hard_parts[index] = hard[index];
    }
    std::vector<std::uint64_t> taken_soft(tenants.size());
    std::vector<std::uint64_t> taken_hard(tenants.size());
    const std::uint64_t rest =
        take_in_proportion(above(claimed, tenants[first].group_limit), soft_parts, &taken_soft);
    (void)take_in_proportion(rest, hard_parts, &taken_hard);
    for (std::size_t index = 0; index < tenants.size(); ++index) {
      (*from_soft)[index] = std::max((*from_soft)[index], taken_soft[index]);
      (*from_hard)[index] = std::max((*from_hard)[index], taken_hard[index]);
    }
  }
}

}  // namespace

void entitle(std::span<const Tenant> tenants, std::uint64_t capacity, std::span<Ruling> rulings) {
  std::vector<Claim> claims(tenants.size());
  std::vector<std::uint64_t> shares(tenants.size());
  for (std::size_t index = 0; index < tenants.size(); ++index) {
    const Tenant& tenant = tenants[index];
    claims[index].most = std::min({tenant.demand, tenant.limit, tenant.group_limit});
    claims[index].least = std::min(tenant.floor, claims[index].most);
    claims[index].weight = std::max(tenant.weight, 1e-6);
  }
  std::vector<bool> done(tenants.size(), false);
  for (std::size_t first = 0; first < tenants.size(); ++first) {
    if (done[first] || tenants[first].group_limit == kNoLimit) continue;
    std::vector<std::size_t> members;
    std::vector<Claim> parts;
    for (std::size_t index = first; index < tenants.size(); ++index) {
      if (tenants[index].group != tenants[first].group) continue;
      done[index] = true;
      members.push_back(index);
      parts.push_back(claims[index]);
    }
    std::vector<std::uint64_t> within(parts.size());
    fill(parts, tenants[first].group_limit, within);
    for (std::size_t index = 0; index < members.size(); ++index) {
      Claim& claim = claims[members[index]];
      claim.most = within[index];
      claim.least = std::min(claim.least, claim.most);
    }
  }
  fill(claims, capacity, shares);
  for (std::size_t index = 0; index < tenants.size(); ++index) {
    rulings[index].entitlement = shares[index];
  }
}

void press(std::span<const Tenant> tenants, std::uint64_t capacity, std::span<Ruling> rulings) {
  std::uint64_t used = 0;
  std::uint64_t wanting = 0;
  std::uint64_t below_floor = 0;
  for (std::size_t index = 0; index < tenants.size(); ++index) {
    const Tenant& tenant = tenants[index];
    Ruling& ruling = rulings[index];
    used += tenant.held;
    ruling.promised = above(ruling.entitlement, tenant.held);
    wanting += std::min(ruling.promised, above(tenant.wanted, tenant.held));
    below_floor += above(std::min({tenant.floor, tenant.wanted, tenant.limit}), tenant.held);
  }
  std::uint64_t need = wanting;
  if (used <= capacity) {
    need = above(wanting, capacity - used);
    below_floor = above(below_floor, capacity - used);
  } else {
    need = wanting + (used - capacity);
    below_floor += used - capacity;
  }

  std::vector<std::uint64_t> soft(tenants.size());
  std::vector<std::uint64_t> hard(tenants.size());
  for (std::size_t index = 0; index < tenants.size(); ++index) {
    const Tenant& tenant = tenants[index];
    const std::uint64_t least = std::max(rulings[index].entitlement, tenant.keep);
    const std::uint64_t excess = above(tenant.held, least);
    soft[index] = std::min(excess, above(tenant.held, tenant.live));
    hard[index] = excess - soft[index];
  }
  std::vector<std::uint64_t> from_soft(tenants.size());
  std::vector<std::uint64_t> from_hard(tenants.size());
  const std::uint64_t rest = take_in_proportion(need, soft, &from_soft);
  // A floor presses at once; a fair share only on those well above theirs.
  const std::uint64_t urgent = std::min(rest, below_floor);
  (void)take_in_proportion(urgent, hard, &from_hard);
  std::vector<std::uint64_t> beyond(tenants.size());
  for (std::size_t index = 0; index < tenants.size(); ++index) {
    const std::uint64_t entitlement = rulings[index].entitlement;
    const bool well_above = above(tenants[index].held, entitlement) * kDeadBand > entitlement;
    beyond[index] = well_above ? hard[index] - from_hard[index] : 0;
  }
  (void)take_in_proportion(rest - urgent, beyond, &from_hard);
  press_groups(tenants, rulings, soft, hard, &from_soft, &from_hard);

  for (std::size_t index = 0; index < tenants.size(); ++index) {
    const Tenant& tenant = tenants[index];
    Ruling& ruling = rulings[index];
    // A limit that the owner is above, whoever waits or not.
    const std::uint64_t over = above(tenant.held, std::max(tenant.limit, tenant.keep));
    const std::uint64_t over_soft = std::min(over, above(tenant.held, tenant.live));
    ruling.soft_pressure = std::max(from_soft[index], over_soft);
    ruling.hard_pressure = std::max(from_hard[index], over - over_soft);
    const std::uint64_t left_by_soft = above(tenant.leaving, ruling.soft_pressure);
    ruling.soft_pressure = above(ruling.soft_pressure, tenant.leaving);
    ruling.hard_pressure = above(ruling.hard_pressure, left_by_soft);
  }
}

}  // namespace kvcached
