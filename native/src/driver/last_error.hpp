#pragma once

#include <string>

#include "kvcached/status.hpp"

namespace kvcached {

/// The one-line account of a driver's last failure, kept apart for every thread: a thread reads
/// its own failure even while another thread is inside the driver.
class LastError {
 public:
  /// Formats the line and returns `status`, so that a failure is one statement. Lines longer
  /// than 255 characters are cut.
  [[gnu::format(printf, 3, 4)]] Status set(Status status, const char* format, ...) const noexcept;

  /// The calling thread's last failure of this driver; empty when another driver failed on the
  /// thread since.
  [[nodiscard]] std::string text() const;
};

}  // namespace kvcached
