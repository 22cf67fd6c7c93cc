#pragma once

#include <cstdint>

namespace kvcached {

/// Outcome of an operation that can fail. Nothing in this library throws or aborts on a
/// driver's answer: a caller that loses a race for memory sees `out_of_memory` and goes on.
enum class Status : std::uint8_t {
  ok,
  /// The device, the budget or the kernel has no more to give. An ordinary allocation miss.
  out_of_memory,
  /// The driver or the device cannot do this at all (no GPU, no virtual-memory support).
  unsupported,
  /// An argument breaks the call's contract; a bug in the caller.
  invalid_argument,
  /// The thing named does not exist, or belongs to a process that is gone.
  not_found,
  /// A file or slot is held by a live owner.
  busy,
  /// The driver failed in a way that it does not explain further; see Driver::last_error.
  driver_error,
};

/// The status as a word, for messages.
[[nodiscard]] constexpr const char* to_string(Status status) noexcept {
  switch (status) {
    case Status::ok:
      return "ok";
    case Status::out_of_memory:
      return "out of memory";
    case Status::unsupported:
      return "unsupported";
    case Status::invalid_argument:
      return "invalid argument";
    case Status::not_found:
      return "not found";
    case Status::busy:
      return "busy";
    case Status::driver_error:
      return "driver error";
  }
  return "unknown status";
}

}  // namespace kvcached
