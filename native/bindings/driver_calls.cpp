#include "driver_calls.hpp"

#include <string>
#include <utility>

#include "bindings.hpp"
#include "cuda/cuda_api.hpp"

namespace kvcached::bindings {

namespace {

class CallsOfDriver final : public DriverCalls {
 public:
  explicit CallsOfDriver(std::unique_ptr<Driver> driver) : driver_(std::move(driver)) {}

  char* reserve(std::size_t bytes) override {
    void* address = nullptr;
    ask(driver_->reserve(bytes, &address));
    return static_cast<char*>(address);
  }
  void unreserve(char* address, std::size_t bytes) override {
    ask(driver_->unreserve(address, bytes));
  }
  std::uint64_t create(std::size_t bytes) override {
    Handle handle;
    ask(driver_->create(bytes, &handle));
    return handle.value;
  }
  void destroy(std::uint64_t handle, std::size_t bytes) override {
    ask(driver_->destroy({handle}, bytes));
  }
  void map(char* address, std::size_t bytes, std::uint64_t handle) override {
    ask(driver_->map(address, bytes, {handle}));
  }
  void unmap(char* address, std::size_t bytes) override { ask(driver_->unmap(address, bytes)); }
  void set_access(char* address, std::size_t bytes) override {
    ask(driver_->set_access(address, bytes));
  }
  void scrub(char* address, std::size_t bytes) override { ask(driver_->scrub(address, bytes)); }
  void wait_for_scrubs() override { ask(driver_->wait_for_scrubs()); }

 private:
  void ask(Status status) const {
    if (status != Status::ok) throw Error(status, driver_->last_error());
  }

  const std::unique_ptr<Driver> driver_;
};

class BareCudaCalls final : public DriverCalls {
 public:
  explicit BareCudaCalls(int ordinal) {
    const char* problem = nullptr;
    api_ = cuda::load(&problem);
    if (api_ == nullptr) throw Error(Status::unsupported, problem);
    int rdma = 0;
    ask(api_->Init(0), "cuInit");
    ask(api_->DeviceGet(&device_, ordinal), "cuDeviceGet");
    (void)api_->DeviceGetAttribute(&rdma, cuda::kGpuDirectRdmaWithVmmSupported, device_);
    properties_.type = cuda::kAllocationTypePinned;
    properties_.location = {.type = cuda::kLocationTypeDevice, .id = device_};
    properties_.flags.gpu_direct_rdma_capable = rdma != 0 ? 1 : 0;
    ask(api_->DevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain");
    const cuda::CallScope scope(*api_, context_);
    ask(api_->StreamCreate(&stream_, cuda::kStreamNonBlocking), "cuStreamCreate");
  }
  ~BareCudaCalls() override {
    {
      const cuda::CallScope scope(*api_, context_);
      (void)api_->StreamDestroy(stream_);
    }
    (void)api_->DevicePrimaryCtxRelease(device_);
  }

  std::shared_ptr<void> enter() override {
    return std::make_shared<cuda::CallScope>(*api_, context_);
  }
  char* reserve(std::size_t bytes) override {
    cuda::DevicePointer address = 0;
    ask(api_->MemAddressReserve(&address, bytes, 0, 0, 0), "cuMemAddressReserve");
    return reinterpret_cast<char*>(address);
  }
  void unreserve(char* address, std::size_t bytes) override {
    ask(api_->MemAddressFree(pointer(address), bytes), "cuMemAddressFree");
  }
  std::uint64_t create(std::size_t bytes) override {
    cuda::MemoryHandle handle = 0;
    ask(api_->MemCreate(&handle, bytes, &properties_, 0), "cuMemCreate");
    return handle;
  }
  void destroy(std::uint64_t handle, std::size_t /*bytes*/) override {
    ask(api_->MemRelease(handle), "cuMemRelease");
  }
  void map(char* address, std::size_t bytes, std::uint64_t handle) override {
    ask(api_->MemMap(pointer(address), bytes, 0, handle, 0), "cuMemMap");
  }
  void unmap(char* address, std::size_t bytes) override {
    ask(api_->MemUnmap(pointer(address), bytes), "cuMemUnmap");
  }
  void set_access(char* address, std::size_t bytes) override {
    const cuda::AccessDescription access{.location = properties_.location,
                                         .flags = cuda::kAccessReadWrite};
    ask(api_->MemSetAccess(pointer(address), bytes, &access, 1), "cuMemSetAccess");
  }
  void scrub(char* address, std::size_t bytes) override {
    ask(api_->MemsetD8Async(pointer(address), 0, bytes, stream_), "cuMemsetD8Async");
  }
  void wait_for_scrubs() override { ask(api_->StreamSynchronize(stream_), "cuStreamSynchronize"); }

 private:
  static cuda::DevicePointer pointer(const char* address) {
    return reinterpret_cast<cuda::DevicePointer>(address);
  }
  void ask(cuda::Result result, const char* call) const {
    if (result == cuda::kSuccess) return;
    throw Error(Status::driver_error, std::string(call) + ": " + cuda::error_name(*api_, result));
  }

  const cuda::Api* api_ = nullptr;
  cuda::Device device_ = 0;
  cuda::Context context_ = nullptr;
  cuda::Stream stream_ = nullptr;
  cuda::AllocationProperties properties_;
};

}  // namespace

std::unique_ptr<DriverCalls> calls_of(std::unique_ptr<Driver> driver) {
  return std::make_unique<CallsOfDriver>(std::move(driver));
}

std::unique_ptr<DriverCalls> bare_cuda_calls(int ordinal) {
  return std::make_unique<BareCudaCalls>(ordinal);
}

}  // namespace kvcached::bindings
