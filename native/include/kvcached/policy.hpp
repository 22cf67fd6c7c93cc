#pragma once

#include <cstdint>
#include <span>

namespace kvcached {

/// No bound, in granules.
inline constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};

/// One lease as the policy sees it. Memory in granules.
struct Tenant {
  /// What the ledger has granted it.
  std::uint64_t held = 0;
  /// What running and waiting requests need now, its cached prefixes and its slack apart.
  std::uint64_t wanted = 0;
  /// The most that `wanted` was within the last second.
  std::uint64_t demand = 0;
  /// Of `held`: what blocks in use pin. The rest (slack, cached prefixes) costs nobody a request.
  std::uint64_t live = 0;
  /// Of `held`: on its way out already.
  std::uint64_t leaving = 0;
  /// What it cannot do without: its pinned extents and its oldest running request.
  std::uint64_t keep = 0;
  /// Guaranteed while it lives.
  std::uint64_t floor = 0;
  /// Most it may hold.
  std::uint64_t limit = kNoLimit;
  double weight = 1.0;
  /// Leases of one number share `group_limit`.
  std::uint32_t group = 0;
  std::uint64_t group_limit = kNoLimit;
};

/// What the policy says to one lease. Memory in granules.
struct Ruling {
  /// Its fair part: max-min by weight over demand, floors first. At most its demand and limit.
  std::uint64_t entitlement = 0;
  /// Of its entitlement: not held. Free memory of this size is promised to it.
  std::uint64_t promised = 0;
  /// To give back of its slack and cached prefixes.
  std::uint64_t soft_pressure = 0;
  /// To give back beyond that, by withholding freed blocks until requests end or are preempted.
  std::uint64_t hard_pressure = 0;
};

/// Entitlements alone. Their sum is at most `capacity`.
///
/// Weighted max-min fairness: everybody gets min(demand, max(floor, level * weight)) for the
/// highest level that fits; a group's members first share its limit in the same way.
void entitle(std::span<const Tenant> tenants, std::uint64_t capacity, std::span<Ruling> rulings);

/// Fills in promises and pressure from the entitlements that `rulings` holds already.
///
/// What tenants below their entitlement want now, and is not free, is asked of those above
/// theirs: slack and cached prefixes first, in proportion to the excess; then what blocks in
/// use pin, of tenants a sixteenth above their entitlement, or of anybody above it where the
/// one who waits is below its floor. A limit that was lowered below what is held presses alone.
void press(std::span<const Tenant> tenants, std::uint64_t capacity, std::span<Ruling> rulings);

}  // namespace kvcached
