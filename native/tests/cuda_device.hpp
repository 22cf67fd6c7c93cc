#pragma once

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "../src/driver/cuda/cuda_api.hpp"

namespace kvcached {

/// CUDA device 0 as an engine uses it, beside the driver under test. To be made after a probe()
/// that was ok, on the thread that uses it: its context is current there while it lives.
class CudaDevice {
 public:
  CudaDevice() {
    const char* problem = nullptr;
    api_ = cuda::load(&problem);
    cuda::Device device = 0;
    EXPECT_EQ(api_->DeviceGet(&device, 0), cuda::kSuccess);
    EXPECT_EQ(api_->DevicePrimaryCtxRetain(&context_, device), cuda::kSuccess);
    EXPECT_EQ(api_->CtxPushCurrent(context_), cuda::kSuccess);
  }

  ~CudaDevice() {
    cuda::Context popped = nullptr;
    EXPECT_EQ(api_->CtxPopCurrent(&popped), cuda::kSuccess);
    EXPECT_EQ(popped, context_);
    EXPECT_EQ(api_->DevicePrimaryCtxRelease(0), cuda::kSuccess);
  }

  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  [[nodiscard]] const cuda::Api& api() const { return *api_; }

  void fill(void* address, std::size_t bytes, unsigned char value) const {
    const auto target = reinterpret_cast<cuda::DevicePointer>(address);
    EXPECT_EQ(api_->MemsetD8Async(target, value, bytes, nullptr), cuda::kSuccess);
    EXPECT_EQ(api_->StreamSynchronize(nullptr), cuda::kSuccess);
  }

  void read(void* copy, const void* address, std::size_t bytes) const {
    const auto source = reinterpret_cast<cuda::DevicePointer>(address);
    const auto result =
        call<void*, cuda::DevicePointer, std::size_t>("cuMemcpyDtoH_v2", copy, source, bytes);
    EXPECT_EQ(result, cuda::kSuccess);
  }

  /// Calls a function of the CUDA driver that the library itself does not use.
  template <typename... Arguments>
  cuda::Result call(const char* name, Arguments... arguments) const {
    void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    const auto function = reinterpret_cast<cuda::Result (*)(Arguments...)>(::dlsym(library, name));
    EXPECT_NE(function, nullptr) << name;
    return function == nullptr ? cuda::kNotSupported : function(arguments...);
  }

 private:
  const cuda::Api* api_ = nullptr;
  cuda::Context context_ = nullptr;
};

}  // namespace kvcached
