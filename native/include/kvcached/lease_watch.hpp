#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvcached/extent_table.hpp"
#include "kvcached/ledger.hpp"

namespace kvcached {

/// What an engine uses of its memory, in extents.
struct MemoryUse {
  std::uint32_t usable = 0;
  std::uint32_t live = 0;
  std::uint32_t cached = 0;
  std::uint32_t empty = 0;
  std::uint32_t leaving = 0;
  std::uint32_t keep = 0;
  /// What the requests at hand need in all.
  std::uint32_t wanted = 0;
};

/// Extents that an engine is asked to give back.
struct Pressure {
  /// Of its slack and its cached prefixes.
  std::uint32_t soft = 0;
  /// Beyond that, of what its requests hold.
  std::uint32_t hard = 0;
};

/// The leases of an engine's ranks, as its scheduler sees them: what could be granted, what must
/// go back, and somebody to tell. Every rank holds the same extents, so the one that is worst off
/// decides.
///
/// One thread at a time, wait_for_bell() apart.
class LeaseWatch {
 public:
  /// Opens the ledgers that the rows name. `error` says what could not be opened.
  [[nodiscard]] static Status open(const ExtentTable& extents, std::unique_ptr<LeaseWatch>* watch,
                                   std::string* error);

  /// Extents that a request for memory would be granted now.
  [[nodiscard]] std::uint32_t grantable();
  /// The same with what neighbours owe and will give back.
  [[nodiscard]] std::uint32_t reachable();
  [[nodiscard]] Pressure pressure();

  /// Tells the ledgers how memory is used.
  void tell(const MemoryUse& use);
  /// What they were told last.
  [[nodiscard]] const MemoryUse& told() const noexcept { return told_; }
  /// Tells that what is wanted cannot be had, so that the neighbours give back. Cheap when
  /// repeated.
  void contend();
  /// Counts what was given back because somebody asked; extents.
  void gave(std::uint32_t extents);
  /// Whether there are orders given by hand that nobody has carried out.
  [[nodiscard]] bool has_orders() noexcept;
  /// Reports those that has_orders() saw last as carried out.
  void orders_done();

  /// Changes whenever a refused grant may succeed.
  [[nodiscard]] std::uint32_t epoch() const noexcept;
  /// Sleeps until the epoch is another, or `deadline`.
  void wait_for_change(std::uint32_t seen, std::chrono::steady_clock::time_point deadline);

  /// Sleeps until somebody rings one of the leases' bells, at most `timeout`. A ring since the last
  /// call is not lost.
  void wait_for_bell(std::chrono::nanoseconds timeout);
  /// Wakes who sleeps in wait_for_bell().
  void ring();

 private:
  struct Place {
    LedgerTable* table = nullptr;
    std::uint32_t slot = kNoSlot;
    std::uint64_t granules_per_extent = 1;
    std::uint32_t bell_seen = 0;
    std::uint32_t orders_seen = 0;
    /// Ranks of this engine that take from the same account.
    std::uint64_t sharing = 1;
  };

  [[nodiscard]] static LeaseSlot& slot_of(const Place& place) noexcept {
    return place.table->slot(place.slot);
  }

  std::vector<std::unique_ptr<Ledger>> ledgers_;
  std::vector<Place> places_;
  std::uint64_t contended_ns_ = 0;
  MemoryUse told_;
};

}  // namespace kvcached
