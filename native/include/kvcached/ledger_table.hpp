#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "kvcached/policy.hpp"
#include "kvcached/recent_peak.hpp"

namespace kvcached {

/// Leases a ledger has room for.
inline constexpr std::uint32_t kLedgerSlots = 255;
/// The slot of an operation that changed no lease.
inline constexpr std::uint32_t kNoSlot = 255;

/// {used granules, last slot, sequence} in one word, so that one compare-and-swap both grants
/// memory and says to whom.
struct LedgerWord {
  static constexpr int kSequenceBits = 28;
  static constexpr std::uint64_t kSequenceMask = (std::uint64_t{1} << kSequenceBits) - 1;
  static constexpr std::uint64_t kMostGranules = (std::uint64_t{1} << 28) - 1;

  std::uint64_t used = 0;
  std::uint32_t slot = kNoSlot;
  std::uint64_t sequence = 0;

  [[nodiscard]] constexpr std::uint64_t pack() const noexcept {
    return (used << 36) | (std::uint64_t{slot} << kSequenceBits) | sequence;
  }
  [[nodiscard]] static constexpr LedgerWord unpack(std::uint64_t bits) noexcept {
    return {bits >> 36, static_cast<std::uint32_t>((bits >> kSequenceBits) & 0xff),
            bits & kSequenceMask};
  }
};

/// {granules, sequence}: a lease's account, or its intent.
struct LedgerEntry {
  std::uint64_t granules = 0;
  std::uint64_t sequence = 0;

  [[nodiscard]] constexpr std::uint64_t pack() const noexcept {
    return (granules << LedgerWord::kSequenceBits) | sequence;
  }
  [[nodiscard]] static constexpr LedgerEntry unpack(std::uint64_t bits) noexcept {
    return {bits >> LedgerWord::kSequenceBits, bits & LedgerWord::kSequenceMask};
  }
};

/// Whether a slot has a lease. Changed under the join lock, or by whoever proved its owner dead.
enum class LeaseState : std::uint32_t { empty, live };

/// What a lease's owner says of itself once. Texts end with a zero byte.
struct LeaseFacts {
  char group[64] = {};
  char instance[96] = {};
  char engine[32] = {};
  char row[192] = {};
  /// Leases of one group have the same.
  std::uint32_t group_id = 0;
  std::uint32_t pid = 0;
  std::uint32_t user = 0;
  std::uint32_t rank = 0;
  /// For telling which of several leases is meant; monotonic nanoseconds.
  std::uint64_t joined_ns = 0;
  std::uint64_t virtual_bytes = 0;
  std::uint64_t extent_bytes = 0;
};

/// One lease in shared memory. Memory in granules unless a name says bytes.
struct LeaseSlot {
  // The account: changed by the protocol alone.
  alignas(64) std::atomic<std::uint64_t> held{0};
  std::atomic<std::uint64_t> intent{0};
  std::atomic<LeaseState> state{LeaseState::empty};
  /// Odd while the owner creates or destroys memory: a look at the device is then no sample.
  std::atomic<std::uint32_t> moving{0};
  /// Physical memory that exists: follows `held`, later when it rises, earlier when it falls.
  std::atomic<std::uint64_t> backed{0};
  /// What the engine will want beyond its cache in its next large step, and does not hold now.
  std::atomic<std::uint64_t> reserve{0};

  // What the owner tells of its use. Of one moment, not of one transaction.
  alignas(64) std::atomic<std::uint64_t> live{0};
  std::atomic<std::uint64_t> cached{0};
  std::atomic<std::uint64_t> slack{0};
  std::atomic<std::uint64_t> leaving{0};
  std::atomic<std::uint64_t> keep{0};
  /// Granules of one request of the longest length and the pinned extents.
  std::atomic<std::uint64_t> longest{0};
  /// {granules:32, milliseconds:32}: what requests need now. Believed for 300 ms.
  std::atomic<std::uint64_t> wanted{0};
  std::atomic<std::uint64_t> seen_ns{0};
  RecentPeak demand;
  std::atomic<std::uint64_t> denials{0};
  std::atomic<std::uint64_t> grants{0};
  /// What neighbours made it give back; granules.
  std::atomic<std::uint64_t> reclaimed{0};

  // What people and settings say of it; written by anybody under no lock.
  alignas(64) std::atomic<std::uint64_t> limit_bytes{0};  // 0: none
  std::atomic<std::uint64_t> group_limit_bytes{0};        // 0: none
  std::atomic<std::uint64_t> floor_bytes{kDefaultFloor};
  std::atomic<std::uint32_t> weight_thousandths{1000};
  std::atomic<std::uint32_t> utilisation_thousandths{0};  // 0: no opinion
  std::atomic<std::uint64_t> device_limit_bytes{0};       // 0: no opinion
  /// Granules asked back by hand, whoever waits; the owner subtracts what it gave.
  std::atomic<std::uint64_t> trim{0};
  /// The entitlement that a policy outside this library has set.
  std::atomic<std::uint64_t> entitlement{0};
  /// Counts changes by hand, and how many of them the owner has carried out, and when.
  std::atomic<std::uint32_t> orders{0};
  std::atomic<std::uint32_t> orders_done{0};
  std::atomic<std::uint64_t> orders_done_ns{0};
  /// Futex: somebody wants something of this lease.
  std::atomic<std::uint32_t> bell{0};
  std::atomic<std::uint32_t> bell_awaited{0};

  LeaseFacts facts;

  /// The floor that follows from the longest request and the number of leases.
  static constexpr std::uint64_t kDefaultFloor = ~std::uint64_t{0};
};

/// The start of a ledger.
struct LedgerHeader {
  std::atomic<std::uint64_t> magic{0};  // written last
  std::uint64_t format = 0;
  std::uint64_t granule_bytes = 0;
  char device[96] = {};
  char driver[16] = {};
  /// Empty, or the name of the policy that writes entitlements.
  char policy[64] = {};

  alignas(64) std::atomic<std::uint64_t> word{LedgerWord{}.pack()};
  std::atomic<std::uint64_t> capacity{0};
  /// Slots in use are below this number.
  std::atomic<std::uint32_t> high_water{0};
  /// Not 0 while somebody may be promised memory: grants then ask the policy. Counts, so that
  /// clearing it cannot lose who came meanwhile.
  std::atomic<std::uint32_t> contended{0};

  /// Futex: what may let a refused grant succeed has changed.
  alignas(64) std::atomic<std::uint32_t> epoch{0};
  std::atomic<std::uint32_t> epoch_awaited{0};
  std::atomic<std::uint64_t> contended_ns{0};

  // The device, as last seen. Bytes.
  alignas(64) std::atomic<std::uint64_t> sampled_ns{0};
  std::atomic<std::uint64_t> device_total{0};
  std::atomic<std::uint64_t> device_free{0};
  /// A higher capacity seen once; it counts when seen again. Granules.
  std::atomic<std::uint64_t> higher_capacity{0};
  std::atomic<std::uint64_t> deaths{0};
};

/// Why a grant was refused.
enum class Grant : std::uint8_t {
  granted,
  /// The device's capacity is used up.
  no_capacity,
  /// The lease's limit, or its group's.
  over_limit,
  /// What is free is promised to somebody below its entitlement.
  promised,
};

/// The answer in words, for messages.
[[nodiscard]] constexpr const char* to_string(Grant grant) noexcept {
  switch (grant) {
    case Grant::granted:
      return "granted";
    case Grant::no_capacity:
      return "the device's capacity is used up";
    case Grant::over_limit:
      return "the limit is reached";
    case Grant::promised:
      return "what is free is promised to others";
  }
  return "unknown";
}

/// The protocol over a ledger's memory: exact under the death of any process at any instruction.
///
/// A lease writes its intent and then swaps the word: that is the commit. Whoever comes next first
/// helps the last operation to finish, so nobody ever waits for anybody. Functions that change a
/// lease's account are for its owner, or for whoever has proved that it is dead.
class LedgerTable {
 public:
  /// Called before each access to shared state that others may race with. For tests, which stop
  /// or switch processes there; it may throw.
  using Probe = void (*)(const char* where);

  LedgerTable(LedgerHeader* header, LeaseSlot* slots) : header_(header), slots_(slots) {}

  [[nodiscard]] LedgerHeader& header() const noexcept { return *header_; }
  [[nodiscard]] LeaseSlot& slot(std::uint32_t index) const noexcept { return slots_[index]; }

  /// Sets what a lease holds. Granting more can be refused; holding less cannot.
  Grant resize(std::uint32_t slot, std::uint64_t granules, std::uint64_t now_ns);
  /// What a lease holds, the last operation finished.
  [[nodiscard]] std::uint64_t held(std::uint32_t slot);
  /// The sum of what is held, as the word has it.
  [[nodiscard]] std::uint64_t used() const noexcept;
  /// All accounts at one moment: used, and what each slot below the high-water mark holds.
  [[nodiscard]] std::uint64_t snapshot(std::vector<std::uint64_t>* held);

  /// Changes the capacity. In force when it returns, for every grant that has not been made.
  void set_capacity(std::uint64_t granules);

  /// Granules that resize() would grant on top of what the lease holds.
  [[nodiscard]] std::uint64_t grantable(std::uint32_t slot, std::uint64_t now_ns);
  /// What the policy says of a lease now. All zero, and cheap, while nobody waits.
  [[nodiscard]] Ruling ruling(std::uint32_t slot, std::uint64_t now_ns);
  /// Every tenant and what the policy says of it, by slot; empty slots have weight 0.
  void judge_all(std::uint64_t now_ns, std::vector<Tenant>* tenants, std::vector<Ruling>* rulings);

  /// Tells what a lease's requests need now, met or not.
  void want(std::uint32_t slot, std::uint64_t granules, std::uint64_t now_ns);
  /// What want() was last told; 0 where that is too long ago to be believed.
  [[nodiscard]] std::uint64_t wanted(std::uint32_t slot, std::uint64_t now_ns) const noexcept;
  /// Tells that a lease lacks memory: grants ask the policy from here on, and those who should
  /// give back hear of it.
  void contend(std::uint64_t now_ns);
  /// Wakes everybody whose grant was refused.
  void changed();
  /// Wakes a lease's owner.
  void ring(std::uint32_t slot);

  static void set_probe(Probe probe) noexcept;

 private:
  void help(LedgerWord word);
  [[nodiscard]] LedgerWord settled();
  [[nodiscard]] Grant may_grow(std::uint32_t slot, std::uint64_t held, std::uint64_t granules,
                               LedgerWord word, std::uint64_t now_ns);
  // Gathers all tenants and their entitlements; returns how many slots there are.
  std::uint64_t judge(std::uint64_t now_ns, std::vector<Tenant>* tenants,
                      std::vector<Ruling>* rulings);
  [[nodiscard]] Tenant tenant_of(const LeaseSlot& slot, std::uint64_t now_ns,
                                 std::uint64_t default_floor) const noexcept;
  [[nodiscard]] std::uint64_t granules(std::uint64_t bytes) const noexcept {
    return bytes / header_->granule_bytes;
  }
  [[nodiscard]] bool bounded_by_group(const LeaseSlot& slot) const noexcept {
    return slot.group_limit_bytes.load(std::memory_order_relaxed) != 0;
  }

  LedgerHeader* header_;
  LeaseSlot* slots_;
};

}  // namespace kvcached
