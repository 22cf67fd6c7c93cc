#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvcached/driver.hpp"
#include "kvcached/file_lock.hpp"
#include "kvcached/ledger_table.hpp"
#include "kvcached/status.hpp"

namespace kvcached {

/// The suffix of every ledger file.
inline constexpr std::string_view kLedgerSuffix = ".ledger";

/// The device that a ledger accounts for.
struct LedgerDevice {
  /// Its UUID; "host" for this machine's memory.
  std::string id;
  std::string driver;
  std::uint64_t granule_bytes = 0;
};

/// One device's account, in a file in shared memory that all engines on the device map.
///
/// Each lease's owner holds an open-file-description lock on one byte of the file; so does
/// whoever joins, leaves or removes the file, for that moment.
class Ledger {
 public:
  /// Opens the file, or creates it where there is none. `shared` gives it to the directory's group
  /// (mode 0660). unsupported where it was written by another version, is damaged, or is about
  /// another device; driver_error where it belongs to another user.
  [[nodiscard]] static Status open_or_create(const std::string& path, const LedgerDevice& device,
                                             bool shared, std::unique_ptr<Ledger>* ledger,
                                             std::string* error);
  /// Opens an existing file; not_found where there is none.
  [[nodiscard]] static Status open(const std::string& path, std::unique_ptr<Ledger>* ledger,
                                   std::string* error);

  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;
  ~Ledger();

  [[nodiscard]] LedgerTable& table() noexcept { return *table_; }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] FileLock& lock() noexcept { return lock_; }

  /// Whether a lease's owner lives.
  [[nodiscard]] bool alive(std::uint32_t slot) const noexcept;
  /// Gives back what dead owners held, `own` (the caller's lease) never looked at. Returns how
  /// many.
  std::uint32_t sweep(std::uint32_t own = kNoSlot);
  /// Removes the file where no lease lives. False where one does.
  bool remove_if_unused();

  /// A moment at which a look at the device is worth something.
  struct Sample {
    std::uint64_t word = 0;
    std::uint64_t backed = 0;
    /// How often memory has moved: what one lease gave and another took may be the same.
    std::uint64_t moves = 0;
    bool operator==(const Sample&) const = default;
  };
  /// Whether the device should be asked now, and by the caller alone: the last look is older than
  /// `age_ns`.
  [[nodiscard]] bool sample_due(std::uint64_t age_ns, std::uint64_t now_ns);
  /// Nothing where memory is moving at this moment.
  [[nodiscard]] std::optional<Sample> begin_sample();
  /// Takes in what the device said since begin_sample(). A lower capacity counts at once, a higher
  /// one when a second look confirms it.
  void end_sample(const Sample& sample, const MemoryInfo& device, std::uint64_t now_ns);

 private:
  friend class Lease;

  Ledger() = default;
  [[nodiscard]] Status map(std::string* error);
  [[nodiscard]] Status lock_for_joining(std::string* error);
  void clear(std::uint32_t slot);

  std::string path_;
  FileLock lock_;
  void* base_ = nullptr;
  int mapped_by_ = 0;
  std::unique_ptr<LedgerTable> table_;
};

/// What an owner asks for when it joins. Sizes in bytes.
struct LeaseTerms {
  std::string group;
  std::string instance;
  std::string engine;
  std::string row;
  std::uint32_t rank = 0;
  std::uint64_t limit_bytes = 0;  // 0: none
  std::optional<std::uint64_t> floor_bytes;
  double weight = 1.0;
  /// Share of the device that may be used at all, from 0 to 1.
  double utilisation = 1.0;
  /// Most that all leases together may hold; 0: what the device has.
  std::uint64_t device_limit_bytes = 0;
  std::uint64_t virtual_bytes = 0;
  std::uint64_t extent_bytes = 0;
  /// Its pinned extents and one request of the longest length; the default floor.
  std::uint64_t longest_bytes = 0;
};

/// One rank's lease, held by its worker process.
class Lease {
 public:
  /// Joins the ledger of a device. `device` is what the driver says of it now. out_of_memory where
  /// the floors do not fit together, with who has them in `error`.
  [[nodiscard]] static Status join(const std::string& path, const LedgerDevice& id, bool shared,
                                   const LeaseTerms& terms, const MemoryInfo& device,
                                   std::unique_ptr<Lease>* lease, std::string* error);
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease();

  /// Holds nothing from here on, and removes the ledger's file where it was the last lease.
  void leave();

  [[nodiscard]] Ledger& ledger() noexcept { return *ledger_; }
  [[nodiscard]] std::uint32_t slot() const noexcept { return slot_; }
  [[nodiscard]] std::uint64_t granule_bytes() const noexcept { return granule_bytes_; }

  /// Asks for so many bytes in all, which requests need: a refusal tells the neighbours who owe
  /// some.
  Grant resize(std::uint64_t bytes);
  /// The same for memory ahead of need: a refusal tells the neighbours only where the scheduler
  /// has said that requests want so much.
  Grant charge(std::uint64_t bytes);
  /// Brackets creating and destroying memory.
  void begin_move() noexcept;
  void end_move(std::uint64_t backed_bytes) noexcept;
  /// Tells what the owner will want of the device beside this account, and does not hold now.
  void reserve(std::uint64_t bytes) noexcept;
  /// Says that the owner lives and looks after its lease.
  void seen() noexcept;

 private:
  Lease() = default;

  std::unique_ptr<Ledger> ledger_;
  std::uint32_t slot_ = kNoSlot;
  std::uint64_t granule_bytes_ = 1;
};

/// Sweeps every ledger of a directory and removes those without a living lease. Returns their
/// paths.
[[nodiscard]] std::vector<std::string> remove_dead_ledgers(const std::string& directory);

}  // namespace kvcached
