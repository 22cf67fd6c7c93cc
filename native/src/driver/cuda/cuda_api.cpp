#include "cuda_api.hpp"

#include <dlfcn.h>

#include <cstdio>

namespace kvcached::cuda {
namespace {

struct Library {
  Api api{};
  bool complete = false;
  char problem[256] = "";

  Library() noexcept {
    void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* const reason = ::dlerror();
      std::snprintf(problem, sizeof(problem),
                    "no CUDA driver on this machine (%s); install the NVIDIA driver, or run the "
                    "container with --gpus all",
                    reason != nullptr ? reason : "libcuda.so.1 not found");
      return;
    }
    complete = true;
    // cuda.h renames a function whose signature has changed; the suffix is part of the symbol.
    find(library, "cuInit", &api.Init);
    find(library, "cuGetErrorName", &api.GetErrorName);
    find(library, "cuDeviceGetCount", &api.DeviceGetCount);
    find(library, "cuDeviceGet", &api.DeviceGet);
    find(library, "cuDeviceGetAttribute", &api.DeviceGetAttribute);
    find(library, "cuDevicePrimaryCtxRetain", &api.DevicePrimaryCtxRetain);
    find(library, "cuDevicePrimaryCtxRelease_v2", &api.DevicePrimaryCtxRelease);
    find(library, "cuCtxGetCurrent", &api.CtxGetCurrent);
    find(library, "cuCtxPushCurrent_v2", &api.CtxPushCurrent);
    find(library, "cuCtxPopCurrent_v2", &api.CtxPopCurrent);
    find(library, "cuThreadExchangeStreamCaptureMode", &api.ThreadExchangeStreamCaptureMode);
    find(library, "cuMemGetInfo_v2", &api.MemGetInfo);
    find(library, "cuMemGetAllocationGranularity", &api.MemGetAllocationGranularity);
    find(library, "cuMemAddressReserve", &api.MemAddressReserve);
    find(library, "cuMemAddressFree", &api.MemAddressFree);
    find(library, "cuMemCreate", &api.MemCreate);
    find(library, "cuMemRelease", &api.MemRelease);
    find(library, "cuMemMap", &api.MemMap);
    find(library, "cuMemUnmap", &api.MemUnmap);
    find(library, "cuMemSetAccess", &api.MemSetAccess);
    find(library, "cuMemsetD8Async", &api.MemsetD8Async);
    find(library, "cuMemcpyDtoHAsync_v2", &api.MemcpyDtoHAsync);
    find(library, "cuStreamCreate", &api.StreamCreate);
    find(library, "cuStreamDestroy_v2", &api.StreamDestroy);
    find(library, "cuStreamSynchronize", &api.StreamSynchronize);
    find(library, "cuEventQuery", &api.EventQuery);
    // Version 2 (CUDA 11.4) tells a MIG instance's UUID, the first only the whole GPU's.
    find(library, "cuDeviceGetUuid_v2", &api.DeviceGetUuid);
  }

  template <typename Function>
  void find(void* library, const char* name, Function* function) noexcept {
    void* const symbol = ::dlsym(library, name);
    *function = reinterpret_cast<Function>(symbol);
    if (symbol != nullptr || !complete) return;
    complete = false;
    std::snprintf(problem, sizeof(problem),
                  "the CUDA driver is too old: it has no %s; install NVIDIA driver 470 or later",
                  name);
  }
};

}  // namespace

const Api* load(const char** problem) noexcept {
  static const Library library;
  if (library.complete) return &library.api;
  *problem = library.problem;
  return nullptr;
}

const char* error_name(const Api& api, Result result) noexcept {
  const char* name = nullptr;
  if (api.GetErrorName(result, &name) != kSuccess || name == nullptr) return "an unknown error";
  return name;
}

CallScope::CallScope(const Api& api, Context context) noexcept : api_(api) {
  mode_changed_ = api_.ThreadExchangeStreamCaptureMode(&capture_mode_) == kSuccess;
  // A failure shows in the call that follows; there is nothing better to say here.
  Context current = nullptr;
  if (api_.CtxGetCurrent(&current) == kSuccess && current != context) {
    pushed_ = api_.CtxPushCurrent(context) == kSuccess;
  }
}

CallScope::~CallScope() {
  Context popped = nullptr;
  if (pushed_) (void)api_.CtxPopCurrent(&popped);
  if (mode_changed_) (void)api_.ThreadExchangeStreamCaptureMode(&capture_mode_);
}

}  // namespace kvcached::cuda
