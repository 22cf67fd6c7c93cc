#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../last_error.hpp"
#include "../memory_map.hpp"
#include "cuda_api.hpp"
#include "kvcached/driver.hpp"

namespace kvcached {

/// One CUDA device, through its driver's virtual-memory calls.
///
/// It works in the device's primary context, the one PyTorch uses, and leaves the calling thread's
/// current context as it finds it.
class CudaDriver final : public Driver {
 public:
  explicit CudaDriver(int ordinal);
  /// Unmaps and returns to the device whatever the caller left, and lets go of the context.
  ~CudaDriver() override;

  [[nodiscard]] const char* name() const noexcept override { return "cuda"; }
  [[nodiscard]] std::string device_id() const override;
  [[nodiscard]] Status probe() override;
  [[nodiscard]] std::size_t granularity() const noexcept override { return granularity_; }
  // A 64 MiB handle costs 85 us to commit and release, a 2 MiB one 64 us; above it the cost
  // grows with the bytes (cuMemRelease: 28 us for 64 MiB, 289 us for 1 GiB on an H200).
  [[nodiscard]] std::size_t largest_useful_handle() const noexcept override {
    return std::size_t{64} << 20;
  }
  // Creating and destroying one is a third of a commit-and-release cycle.
  [[nodiscard]] bool handles_are_worth_keeping() const noexcept override { return true; }
  [[nodiscard]] std::size_t max_mappings() const noexcept override { return 0; }
  [[nodiscard]] Status reserve(std::size_t bytes, void** address) override;
  [[nodiscard]] Status unreserve(void* address, std::size_t bytes) override;
  [[nodiscard]] Status create(std::size_t bytes, Handle* handle) override;
  [[nodiscard]] Status destroy(Handle handle, std::size_t bytes) override;
  [[nodiscard]] Status map(void* address, std::size_t bytes, Handle handle) override;
  [[nodiscard]] Status unmap(void* address, std::size_t bytes) override;
  [[nodiscard]] Status set_access(void* address, std::size_t bytes) override;
  [[nodiscard]] Status scrub(void* address, std::size_t bytes, std::uint8_t byte = 0) override;
  [[nodiscard]] Status wait_for_scrubs() override;
  [[nodiscard]] Status zero_on(Stream stream, void* address, std::size_t bytes) override;
  [[nodiscard]] Status reads_as(std::uint8_t byte, const void* address, std::size_t bytes,
                                bool* all) override;
  [[nodiscard]] bool fresh_memory_is_zero() const noexcept override;
  [[nodiscard]] Status event_passed(Event event, bool* passed) override;
  [[nodiscard]] Status memory_info(MemoryInfo* info) override;
  [[nodiscard]] std::string last_error() const override { return error_.text(); }

  /// The device's UUID as 8-4-4-4-12 hexadecimal digits (nvidia-smi writes "GPU-" or "MIG-" before
  /// them), the same in every process and whatever CUDA_VISIBLE_DEVICES says. On a MIG instance,
  /// the instance's.
  [[nodiscard]] Status device_uuid(std::string* uuid) const;

 private:
  [[nodiscard]] Status check_ready(const char* call) const;
  [[nodiscard]] Status failed(const char* call, cuda::Result result, std::size_t bytes) const;
  [[nodiscard]] Status find_device(cuda::Device* device);
  [[nodiscard]] Status open_context(cuda::Device device);
  [[nodiscard]] cuda::AllocationProperties properties() const noexcept;

  // Hands what scrub() has gathered to the device.
  void queue_scrub();
  // Sleeps until the device has filled all that it was told to.
  void finish_scrubs();

  const LastError error_{};
  MemoryMap map_;
  const int ordinal_;
  const cuda::Api* api_ = nullptr;
  cuda::Device device_ = 0;
  cuda::Context context_ = nullptr;
  cuda::Stream stream_ = nullptr;
  // The range that scrub() gathers, which may be empty, and what to fill it with.
  cuda::DevicePointer unqueued_ = 0;
  std::size_t unqueued_bytes_ = 0;
  std::uint8_t unqueued_byte_ = 0;
  // Whether anything was scrubbed since the stream was last waited for, and what went wrong.
  bool scrubbing_ = false;
  cuda::Result scrub_result_ = cuda::kSuccess;
  std::size_t granularity_;
  bool rdma_capable_ = false;
};

}  // namespace kvcached
