#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kvcached/driver.hpp"

namespace kvcached {

/// A device that exists on paper, for tests: it accounts for every byte, enforces the Driver
/// contract to the letter, keeps its own time, and fails when told to.
///
/// Addresses are no process's: touching one faults. Unlike other drivers, it may be called, and
/// scripted, by several threads at once.
class SimDriver final : public Driver {
 public:
  enum class Call : std::uint8_t {
    probe,
    reserve,
    unreserve,
    create,
    destroy,
    map,
    unmap,
    set_access,
    scrub,
    wait_for_scrubs,
    zero_on,
    reads_as,
    event_passed,
    memory_info,
  };
  static constexpr std::size_t kCalls = 14;

  struct Options {
    std::size_t capacity_bytes = std::size_t{1} << 30;
    std::size_t granularity = std::size_t{2} << 20;
    /// map() beyond it is Status::out_of_memory; 0 for no bound.
    std::size_t max_mappings = 0;
    bool fresh_memory_is_zero = false;
  };

  /// The virtual time that a call takes, failed or not.
  struct Latency {
    std::uint64_t base_ns = 0;
    std::uint64_t per_mib_ns = 0;
  };

  /// Everything that a call can change. Two equal snapshots around a failed call prove that it
  /// left everything as it was.
  struct Snapshot {
    struct Allocation {
      std::size_t bytes = 0;
      bool mapped = false;
      /// The bytes whose value is known, begin to end, by value: scrubbed, or fresh where fresh
      /// memory is zero, and not touched since.
      std::map<std::uint8_t, std::map<std::size_t, std::size_t>> known;
      bool operator==(const Allocation&) const = default;
    };
    struct Mapping {
      std::size_t bytes = 0;
      std::uint64_t handle = 0;
      bool accessible = false;
      bool operator==(const Mapping&) const = default;
    };
    /// Address to bytes.
    std::map<std::uintptr_t, std::size_t> reservations;
    /// By Handle::value.
    std::map<std::uint64_t, Allocation> handles;
    /// By first address.
    std::map<std::uintptr_t, Mapping> mappings;
    struct Scrub {
      std::uintptr_t address = 0;
      std::size_t bytes = 0;
      std::uint8_t byte = 0;
      bool operator==(const Scrub&) const = default;
    };
    /// Those that nobody has waited for, in the order of their calls.
    std::vector<Scrub> scrubs;
    /// What zero_on() has queued and run_streams() has not run.
    std::vector<Scrub> queued_zeroes;
    bool operator==(const Snapshot&) const = default;
  };

  SimDriver();
  explicit SimDriver(const Options& options);
  ~SimDriver() override;

  [[nodiscard]] const char* name() const noexcept override { return "sim"; }
  [[nodiscard]] Status probe() override;
  [[nodiscard]] std::size_t granularity() const noexcept override;
  [[nodiscard]] std::size_t largest_useful_handle() const noexcept override {
    return std::size_t{64} << 20;
  }
  [[nodiscard]] bool handles_are_worth_keeping() const noexcept override { return true; }
  [[nodiscard]] std::size_t max_mappings() const noexcept override;
  [[nodiscard]] Status reserve(std::size_t bytes, void** address) override;
  [[nodiscard]] Status unreserve(void* address, std::size_t bytes) override;
  [[nodiscard]] Status create(std::size_t bytes, Handle* handle) override;
  [[nodiscard]] Status destroy(Handle handle, std::size_t bytes) override;
  [[nodiscard]] Status map(void* address, std::size_t bytes, Handle handle) override;
  [[nodiscard]] Status unmap(void* address, std::size_t bytes) override;
  [[nodiscard]] Status set_access(void* address, std::size_t bytes) override;
  [[nodiscard]] Status scrub(void* address, std::size_t bytes, std::uint8_t byte = 0) override;
  [[nodiscard]] Status wait_for_scrubs() override;
  /// Until run_streams() the range may hold anything, and neither a touch nor an unmap() may meet
  /// it.
  [[nodiscard]] Status zero_on(Stream stream, void* address, std::size_t bytes) override;
  [[nodiscard]] Status reads_as(std::uint8_t byte, const void* address, std::size_t bytes,
                                bool* all) override;
  [[nodiscard]] bool fresh_memory_is_zero() const noexcept override;
  /// An event has passed once the clock has reached its value (in ns), or after pass().
  [[nodiscard]] Status event_passed(Event event, bool* passed) override;
  [[nodiscard]] Status memory_info(MemoryInfo* info) override;
  [[nodiscard]] std::string last_error() const override;

  // Scripting.

  /// What the device has from now on, in bytes. Below what is created already, create() fails
  /// until enough is destroyed.
  void set_capacity(std::size_t bytes);
  void set_latency(Call call, Latency latency);
  /// Lets the n-th call from now, of any kind, do nothing and return `status`. n counts from 1.
  void fail_call(std::uint64_t n, Status status);
  /// The same, counting calls of one kind only.
  void fail_call(Call call, std::uint64_t n, Status status);
  /// Forgets the failures that have not happened yet.
  void clear_failures();
  /// Moves the clock on.
  void advance(std::uint64_t ns);
  /// Marks an event as passed, whatever the clock says.
  void pass(Event event);
  /// Runs all that zero_on() has queued.
  void run_streams();
  /// What an engine's kernel does: writes to a range of any alignment. An access to memory that
  /// is not mapped and accessible, or is being scrubbed or zeroed, is Status::invalid_argument and
  /// a contract violation.
  [[nodiscard]] Status touch(const void* address, std::size_t bytes);

  // Observing.

  /// Whether an accessible range of any alignment holds nothing but zeros. An access to memory
  /// that is not mapped and accessible is false and a contract violation.
  [[nodiscard]] bool reads_as_zero(const void* address, std::size_t bytes) const {
    return is_all(0, address, bytes);
  }
  /// The same, for any byte.
  [[nodiscard]] bool is_all(std::uint8_t byte, const void* address, std::size_t bytes) const;

  [[nodiscard]] Snapshot snapshot() const;
  /// The virtual time in ns: the sum of all latencies and advances.
  [[nodiscard]] std::uint64_t now() const;
  [[nodiscard]] std::uint64_t calls() const;
  [[nodiscard]] std::uint64_t calls(Call call) const;
  /// Bytes of all handles that exist now.
  [[nodiscard]] std::size_t created_bytes() const;
  /// The most that created_bytes() ever was.
  [[nodiscard]] std::size_t peak_created_bytes() const;
  /// Bytes of all mappings that exist now.
  [[nodiscard]] std::size_t mapped_bytes() const;
  /// Calls whose arguments broke the contract of Driver, and stray touches. A test of correct
  /// code ends with 0 here.
  [[nodiscard]] std::uint64_t contract_violations() const;

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace kvcached
