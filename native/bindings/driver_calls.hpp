#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kvcached/driver.hpp"

namespace kvcached::bindings {

/// A device's virtual-memory calls, for loops that time them. Every call throws Error where it is
/// refused.
class DriverCalls {
 public:
  DriverCalls() = default;
  DriverCalls(const DriverCalls&) = delete;
  DriverCalls& operator=(const DriverCalls&) = delete;
  virtual ~DriverCalls() = default;

  /// Makes the calling thread fit for the calls below, until the guard goes.
  [[nodiscard]] virtual std::shared_ptr<void> enter() { return nullptr; }
  virtual char* reserve(std::size_t bytes) = 0;
  virtual void unreserve(char* address, std::size_t bytes) = 0;
  virtual std::uint64_t create(std::size_t bytes) = 0;
  virtual void destroy(std::uint64_t handle, std::size_t bytes) = 0;
  virtual void map(char* address, std::size_t bytes, std::uint64_t handle) = 0;
  virtual void unmap(char* address, std::size_t bytes) = 0;
  virtual void set_access(char* address, std::size_t bytes) = 0;
  virtual void scrub(char* address, std::size_t bytes) = 0;
  virtual void wait_for_scrubs() = 0;
};

/// The calls of a Driver, with all that it adds to them.
[[nodiscard]] std::unique_ptr<DriverCalls> calls_of(std::unique_ptr<Driver> driver);

/// The functions of libcuda.so.1 alone, on device `ordinal`: no account, no checks, the context
/// current all the time. Handles are made as CudaDriver makes them.
[[nodiscard]] std::unique_ptr<DriverCalls> bare_cuda_calls(int ordinal);

}  // namespace kvcached::bindings
