// How a CudaDriver comes to its device, and leaves it; the memory calls are in cuda_driver.cpp.

#include <algorithm>
#include <cstdio>

#include "cuda_driver.hpp"

namespace kvcached {
namespace {

// The granularity of every GPU with virtual-memory support so far, and the unit in which this
// library's costs were measured: a smaller one would only mean more calls.
constexpr std::size_t kSmallestGranularity = std::size_t{2} << 20;

}  // namespace

CudaDriver::CudaDriver(int ordinal)
    : map_(error_), ordinal_(ordinal), granularity_(kSmallestGranularity) {
  map_.set_granularity(granularity_);
}

CudaDriver::~CudaDriver() {
  if (context_ == nullptr) return;
  finish_scrubs();
  {
    // At process exit the CUDA driver may be gone already. Every call then says so and does
    // nothing: the memory went with it.
    const cuda::CallScope scope(*api_, context_);
    for (const auto& [address, mapping] : map_.mappings()) {
      (void)api_->MemUnmap(address, mapping.bytes);
    }
    for (const auto& [handle, allocation] : map_.allocations()) (void)api_->MemRelease(handle);
    for (const auto& [address, bytes] : map_.reservations()) {
      (void)api_->MemAddressFree(address, bytes);
    }
    (void)api_->StreamDestroy(stream_);
  }
  (void)api_->DevicePrimaryCtxRelease(device_);
}

Status CudaDriver::probe() {
  if (context_ != nullptr) return Status::ok;
  cuda::Device device = 0;
  if (const Status status = find_device(&device); status != Status::ok) return status;
  return open_context(device);
}

Status CudaDriver::find_device(cuda::Device* device) {
  const char* problem = nullptr;
  const cuda::Api* const api = cuda::load(&problem);
  if (api == nullptr) return error_.set(Status::unsupported, "probe: %s", problem);
  api_ = api;
  cuda::Result result = api->Init(0);
  if (result == cuda::kStubLibrary) {
    return error_.set(Status::unsupported,
                      "probe: libcuda.so.1 is the toolkit's stub; put the driver's library before "
                      "it in LD_LIBRARY_PATH");
  }
  if (result == cuda::kNotInitialized) {
    return error_.set(Status::unsupported,
                      "probe: CUDA was in use before this process was forked; start workers by "
                      "spawn, not fork");
  }
  int count = 0;
  if (result == cuda::kSuccess) result = api->DeviceGetCount(&count);
  if (result == cuda::kNoDevice || (result == cuda::kSuccess && count == 0)) {
    return error_.set(Status::unsupported,
                      "probe: the CUDA driver sees no GPU; check nvidia-smi and "
                      "CUDA_VISIBLE_DEVICES");
  }
  if (result != cuda::kSuccess) {
    return error_.set(Status::unsupported, "probe: cuInit: %s (%d); check nvidia-smi",
                      cuda::error_name(*api, result), result);
  }
  if (ordinal_ < 0 || ordinal_ >= count) {
    return error_.set(Status::unsupported,
                      "probe: no CUDA device %d among %d; CUDA_VISIBLE_DEVICES renumbers them",
                      ordinal_, count);
  }
  result = api->DeviceGet(device, ordinal_);
  int supported = 0;
  if (result == cuda::kSuccess) {
    result = api->DeviceGetAttribute(&supported, cuda::kVirtualMemoryManagementSupported, *device);
  }
  if (result != cuda::kSuccess) return failed("probe", result, 0);
  if (supported == 0) {
    return error_.set(Status::unsupported,
                      "probe: CUDA device %d has no virtual memory management; it needs a GPU and "
                      "a driver mode (not vGPU without unified memory) that have it",
                      ordinal_);
  }
  return Status::ok;
}

Status CudaDriver::open_context(cuda::Device device) {
  int rdma = 0;
  // An attribute that an older driver does not know means no.
  (void)api_->DeviceGetAttribute(&rdma, cuda::kGpuDirectRdmaWithVmmSupported, device);
  device_ = device;
  rdma_capable_ = rdma != 0;

  cuda::Context context = nullptr;
  if (const auto result = api_->DevicePrimaryCtxRetain(&context, device);
      result != cuda::kSuccess) {
    return failed("probe", result, 0);
  }
  std::size_t granularity = 0;
  cuda::Result result = cuda::kSuccess;
  {
    const cuda::CallScope scope(*api_, context);
    const cuda::AllocationProperties wanted = properties();
    result =
        api_->MemGetAllocationGranularity(&granularity, &wanted, cuda::kGranularityRecommended);
    // Non-blocking: no work of ours ever waits for the legacy default stream, nor it for ours.
    if (result == cuda::kSuccess) result = api_->StreamCreate(&stream_, cuda::kStreamNonBlocking);
  }
  if (result != cuda::kSuccess) {
    (void)api_->DevicePrimaryCtxRelease(device);
    return failed("probe", result, 0);
  }
  granularity_ = std::max(granularity, kSmallestGranularity);
  map_.set_granularity(granularity_);
  context_ = context;
  return Status::ok;
}

Status CudaDriver::device_uuid(std::string* uuid) const {
  if (const Status status = check_ready("device_uuid"); status != Status::ok) return status;
  cuda::Uuid read;
  if (const auto result = api_->DeviceGetUuid(&read, device_); result != cuda::kSuccess) {
    return failed("cuDeviceGetUuid", result, 0);
  }
  std::string text;
  for (std::size_t i = 0; i < sizeof(read.bytes); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    char digits[3];
    std::snprintf(digits, sizeof(digits), "%02x", read.bytes[i]);
    text += digits;
  }
  *uuid = text;
  return Status::ok;
}

std::string CudaDriver::device_id() const {
  std::string uuid;
  return device_uuid(&uuid) == Status::ok ? "GPU-" + uuid : std::string(name());
}

}  // namespace kvcached
