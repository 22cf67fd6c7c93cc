#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcached::cuda {

// The part of the CUDA driver API that is used here, so that no toolkit is needed to build and no
// driver to load. Names, values and layouts are those of cuda.h (CUDA 13.0; unchanged since the
// virtual-memory calls came with 10.2), which promises them stable: programs are linked against
// libcuda.so.1 and must run with any later driver.

using Result = int;                   // CUresult
using Device = int;                   // CUdevice
using Context = struct ContextTag*;   // CUcontext
using Stream = struct StreamTag*;     // CUstream
using Event = struct EventTag*;       // CUevent
using DevicePointer = std::uint64_t;  // CUdeviceptr
using MemoryHandle = std::uint64_t;   // CUmemGenericAllocationHandle

// CUresult
inline constexpr Result kSuccess = 0;
inline constexpr Result kInvalidValue = 1;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kNotInitialized = 3;
inline constexpr Result kStubLibrary = 34;
inline constexpr Result kNoDevice = 100;
inline constexpr Result kInvalidDevice = 101;
inline constexpr Result kNotReady = 600;
inline constexpr Result kNotSupported = 801;

// CUdevice_attribute
inline constexpr int kVirtualMemoryManagementSupported = 102;
inline constexpr int kGpuDirectRdmaWithVmmSupported = 110;

inline constexpr int kAllocationTypePinned = 1;    // CU_MEM_ALLOCATION_TYPE_PINNED
inline constexpr int kLocationTypeDevice = 1;      // CU_MEM_LOCATION_TYPE_DEVICE
inline constexpr int kAccessReadWrite = 3;         // CU_MEM_ACCESS_FLAGS_PROT_READWRITE
inline constexpr int kGranularityRecommended = 1;  // CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
inline constexpr unsigned kStreamNonBlocking = 1;  // CU_STREAM_NON_BLOCKING
inline constexpr int kCaptureModeRelaxed = 2;      // CU_STREAM_CAPTURE_MODE_RELAXED

// CUmemLocation_v1
struct Location {
  int type = 0;
  int id = 0;
};

// CUmemAllocationProp_v1
struct AllocationProperties {
  int type = 0;
  int requested_handle_types = 0;
  Location location;
  void* win32_metadata = nullptr;
  struct Flags {
    unsigned char compression_type = 0;
    unsigned char gpu_direct_rdma_capable = 0;
    unsigned short usage = 0;
    unsigned char reserved[4] = {};
  } flags;
};
static_assert(sizeof(AllocationProperties) == 32);

// CUmemAccessDesc_v1
struct AccessDescription {
  Location location;
  int flags = 0;
};
static_assert(sizeof(AccessDescription) == 12);

// CUuuid
struct Uuid {
  unsigned char bytes[16] = {};
};

/// The functions of libcuda.so.1, each under its own name without "cu".
struct Api {
  Result (*Init)(unsigned flags);
  Result (*GetErrorName)(Result error, const char** name);
  Result (*DeviceGetCount)(int* count);
  Result (*DeviceGet)(Device* device, int ordinal);
  Result (*DeviceGetAttribute)(int* value, int attribute, Device device);
  Result (*DeviceGetUuid)(Uuid* uuid, Device device);
  Result (*DevicePrimaryCtxRetain)(Context* context, Device device);
  Result (*DevicePrimaryCtxRelease)(Device device);
  Result (*CtxGetCurrent)(Context* context);
  Result (*CtxPushCurrent)(Context context);
  Result (*CtxPopCurrent)(Context* context);
  Result (*ThreadExchangeStreamCaptureMode)(int* mode);
  Result (*MemGetInfo)(std::size_t* free, std::size_t* total);
  Result (*MemGetAllocationGranularity)(std::size_t* bytes, const AllocationProperties* properties,
                                        int option);
  Result (*MemAddressReserve)(DevicePointer* address, std::size_t bytes, std::size_t alignment,
                              DevicePointer hint, unsigned long long flags);
  Result (*MemAddressFree)(DevicePointer address, std::size_t bytes);
  Result (*MemCreate)(MemoryHandle* handle, std::size_t bytes,
                      const AllocationProperties* properties, unsigned long long flags);
  Result (*MemRelease)(MemoryHandle handle);
  Result (*MemMap)(DevicePointer address, std::size_t bytes, std::size_t offset,
                   MemoryHandle handle, unsigned long long flags);
  Result (*MemUnmap)(DevicePointer address, std::size_t bytes);
  Result (*MemSetAccess)(DevicePointer address, std::size_t bytes,
                         const AccessDescription* descriptions, std::size_t count);
  Result (*MemsetD8Async)(DevicePointer address, unsigned char value, std::size_t bytes,
                          Stream stream);
  Result (*MemcpyDtoHAsync)(void* to, DevicePointer from, std::size_t bytes, Stream stream);
  Result (*StreamCreate)(Stream* stream, unsigned flags);
  Result (*StreamDestroy)(Stream stream);
  Result (*StreamSynchronize)(Stream stream);
  Result (*EventQuery)(Event event);
};

/// Loads the library and its functions, once a process; it is never unloaded. Returns null and
/// sets `*problem` to one line that lives as long as the process when that fails.
[[nodiscard]] const Api* load(const char** problem) noexcept;

/// "CUDA_ERROR_OUT_OF_MEMORY", or "an unknown error".
[[nodiscard]] const char* error_name(const Api& api, Result result) noexcept;

/// Makes a context current and CUDA-graph captures harmless on this thread, for one call.
///
/// The thread is left as it was found: an engine's thread keeps its own device. While any thread
/// captures a graph in CUDA's default ("global") mode, calls that might allocate or query an event
/// fail on every thread and invalidate that capture; a thread in relaxed mode is exempt, and
/// nothing here touches a capturing stream. Costs well under 1 us.
class CallScope {
 public:
  CallScope(const Api& api, Context context) noexcept;
  ~CallScope();
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;

 private:
  const Api& api_;
  int capture_mode_ = kCaptureModeRelaxed;
  bool mode_changed_ = false;
  bool pushed_ = false;
};

}  // namespace kvcached::cuda
