#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kvcached/status.hpp"

namespace kvcached {

/// One piece of physical memory, or a driver's promise of it. Its value means something to the
/// driver that made it only.
struct Handle {
  std::uint64_t value = 0;
};

/// A point in an accelerator's work. On CUDA the value is a CUevent; 0 has always passed.
struct Event {
  std::uint64_t value = 0;
};

/// A queue of an accelerator's work that is the engine's. On CUDA the value is a CUstream; 0 is the
/// default one.
struct Stream {
  std::uint64_t value = 0;
};

/// A device's memory, in bytes.
struct MemoryInfo {
  std::size_t free = 0;
  std::size_t total = 0;
};

/// The virtual-memory calls of one device.
///
/// Sizes and addresses are multiples of granularity(), those of scrub() and reads_as() apart. A
/// call that does not return Status::ok leaves everything as it was before. Apart from
/// last_error() and zero_on(), every method is called by one thread at a time (the pager's, once
/// it runs); nothing here locks.
class Driver {
 public:
  Driver() = default;
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;
  virtual ~Driver() = default;

  /// "cuda", "host" or "sim".
  [[nodiscard]] virtual const char* name() const noexcept = 0;

  /// What tells this device from every other on the machine, in every process: a GPU's UUID,
  /// "host" for the machine's memory.
  [[nodiscard]] virtual std::string device_id() const { return name(); }

  /// Whether the device can be used. Must be called, and be ok, before anything below.
  [[nodiscard]] virtual Status probe() = 0;

  /// The smallest physical unit in bytes: 2 MiB on CUDA, 64 KiB on the host.
  [[nodiscard]] virtual std::size_t granularity() const noexcept = 0;

  /// The largest handle that is worth asking for, in bytes: beyond it, or where the cost is per
  /// byte and not per handle, a larger one only pins more.
  [[nodiscard]] virtual std::size_t largest_useful_handle() const noexcept = 0;

  /// Whether an unmapped handle that is kept and mapped again saves work over a new one. Where it
  /// does not, keeping one only withholds memory from others.
  [[nodiscard]] virtual bool handles_are_worth_keeping() const noexcept = 0;

  /// How many separate mappings one process may hold; 0 where the driver sets no bound.
  [[nodiscard]] virtual std::size_t max_mappings() const noexcept = 0;

  /// Reserves address space without memory under it. Touching it faults.
  [[nodiscard]] virtual Status reserve(std::size_t bytes, void** address) = 0;

  /// Returns a whole reservation to the system. Nothing may be mapped in it.
  [[nodiscard]] virtual Status unreserve(void* address, std::size_t bytes) = 0;

  /// Takes physical memory from the device. It exists once set_access() returns; before that the
  /// host driver only counts it as taken.
  [[nodiscard]] virtual Status create(std::size_t bytes, Handle* handle) = 0;

  /// Gives physical memory back to the device. It must not be mapped.
  [[nodiscard]] virtual Status destroy(Handle handle, std::size_t bytes) = 0;

  /// Puts a whole handle at an address inside a reservation. A handle is mapped at one place at
  /// most.
  [[nodiscard]] virtual Status map(void* address, std::size_t bytes, Handle handle) = 0;

  /// Takes a whole handle out of the address space, once no scrub() is under way; a later touch
  /// faults. What the handle held may be gone: mapped again, every byte of it reads as its last
  /// user left it, or as zero. On the host it can meet the kernel's mapping limit:
  /// Status::out_of_memory, and the handle stays mapped and usable, contents and all.
  [[nodiscard]] virtual Status unmap(void* address, std::size_t bytes) = 0;

  /// Lets the device read and write a range of whole mappings side by side. Until then a touch
  /// faults. Status::out_of_memory where the host finds no memory for what create() promised.
  [[nodiscard]] virtual Status set_access(void* address, std::size_t bytes) = 0;

  /// Starts to fill a mapped, accessible range with `byte`, on the driver's own queue, never on the
  /// engine's. Until wait_for_scrubs() has said that it is done the range may hold anything, and
  /// nobody may touch it. Where ranges overlap, the last scrub() counts.
  [[nodiscard]] virtual Status scrub(void* address, std::size_t bytes, std::uint8_t byte = 0) = 0;

  /// Returns when every scrub() since the last call is done. Where it fails, nothing is under way
  /// any more, and all their ranges may hold anything.
  [[nodiscard]] virtual Status wait_for_scrubs() = 0;

  /// Queues zeroes for a mapped, accessible range behind what is on `stream` and ahead of what
  /// comes there next. Unlike scrub(), nobody waits for it: the caller sees to it that the range
  /// stays mapped until the device is done with it. Any thread, beside any other call.
  [[nodiscard]] virtual Status zero_on(Stream stream, void* address, std::size_t bytes) = 0;

  /// Whether every byte of a mapped, accessible range is `byte`. Nothing in the range may be under
  /// a scrub() that was not waited for. For checks: it copies the range to where the processor can
  /// read it.
  [[nodiscard]] virtual Status reads_as(std::uint8_t byte, const void* address, std::size_t bytes,
                                        bool* all) = 0;

  /// Whether a handle fresh from create() reads as zero (promised, or measured and documented).
  [[nodiscard]] virtual bool fresh_memory_is_zero() const noexcept = 0;

  /// Whether the device has finished all work up to an event.
  [[nodiscard]] virtual Status event_passed(Event event, bool* passed) = 0;

  [[nodiscard]] virtual Status memory_info(MemoryInfo* info) = 0;

  /// What the last failure was, in one line: call, code, and the number it was about.
  /// Valid on the thread that made the failing call, until its next call.
  [[nodiscard]] virtual std::string last_error() const = 0;
};

/// Anonymous memory of this machine. `budget_bytes` bounds what create() hands out; 0 takes the
/// machine's own memory (the control group's limit where it is lower).
[[nodiscard]] std::unique_ptr<Driver> make_host_driver(std::size_t budget_bytes);

/// The CUDA driver API of device `ordinal` (as CUDA counts it, after CUDA_VISIBLE_DEVICES),
/// found with dlopen at run time.
[[nodiscard]] std::unique_ptr<Driver> make_cuda_driver(int ordinal);

}  // namespace kvcached
