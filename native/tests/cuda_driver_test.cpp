// What is special to CUDA; what every driver must do is in driver_conformance_test.cpp.

#include "../src/driver/cuda/cuda_driver.hpp"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "cuda_device.hpp"

namespace kvcached {
namespace {

TEST(CudaDriverProbe, SaysWhyThereIsNoDeviceAndWhatToDo) {
  for (const int ordinal : {-1, 1'000}) {
    CudaDriver driver(ordinal);
    EXPECT_EQ(driver.probe(), Status::unsupported);
    EXPECT_NE(driver.last_error().find("probe: "), std::string::npos) << driver.last_error();
    EXPECT_EQ(driver.last_error().find('\n'), std::string::npos) << driver.last_error();
  }
}

class CudaDriverTest : public testing::Test {
 protected:
  void SetUp() override {
    const Status status = driver.probe();
    if (status == Status::unsupported) GTEST_SKIP() << driver.last_error();
    ASSERT_EQ(status, Status::ok) << driver.last_error();
  }

  // One whole life of an extent.
  void cycle() {
    const std::size_t unit = driver.granularity();
    void* address = nullptr;
    Handle handle;
    MemoryInfo info;
    ASSERT_EQ(driver.reserve(unit, &address), Status::ok) << driver.last_error();
    ASSERT_EQ(driver.create(unit, &handle), Status::ok) << driver.last_error();
    ASSERT_EQ(driver.map(address, unit, handle), Status::ok) << driver.last_error();
    ASSERT_EQ(driver.set_access(address, unit), Status::ok) << driver.last_error();
    ASSERT_EQ(driver.scrub(address, unit), Status::ok) << driver.last_error();
    ASSERT_EQ(driver.wait_for_scrubs(), Status::ok) << driver.last_error();
    ASSERT_EQ(driver.memory_info(&info), Status::ok) << driver.last_error();
    ASSERT_EQ(driver.unmap(address, unit), Status::ok) << driver.last_error();
    ASSERT_EQ(driver.destroy(handle, unit), Status::ok) << driver.last_error();
    ASSERT_EQ(driver.unreserve(address, unit), Status::ok) << driver.last_error();
  }

  CudaDriver driver{0};
};

TEST_F(CudaDriverTest, KnowsItsDeviceByUuid) {
  std::string uuid;
  ASSERT_EQ(driver.device_uuid(&uuid), Status::ok) << driver.last_error();
  EXPECT_EQ(uuid.size(), 36u) << uuid;
  EXPECT_NE(uuid, "00000000-0000-0000-0000-000000000000");
}

TEST_F(CudaDriverTest, LeavesTheThreadsContextAsItWas) {
  const cuda::Api* const api = [] {
    const char* problem = nullptr;
    return cuda::load(&problem);
  }();
  std::thread([&] {
    cuda::Context current = nullptr;
    cycle();
    EXPECT_EQ(api->CtxGetCurrent(&current), cuda::kSuccess);
    EXPECT_EQ(current, nullptr);
    const CudaDevice device;
    cuda::Context engine = nullptr;
    EXPECT_EQ(api->CtxGetCurrent(&engine), cuda::kSuccess);
    cycle();
    EXPECT_EQ(api->CtxGetCurrent(&current), cuda::kSuccess);
    EXPECT_EQ(current, engine);
  }).join();
}

TEST_F(CudaDriverTest, WorksFromThreadsThatNeverUsedCuda) {
  for (int n = 0; n < 3; ++n) std::thread([&] { cycle(); }).join();
}

TEST_F(CudaDriverTest, PassesAnEventOnceTheWorkBeforeItIsDone) {
  const CudaDevice device;
  cuda::Stream stream = nullptr;
  cuda::Event event = nullptr;
  ASSERT_EQ(device.api().StreamCreate(&stream, cuda::kStreamNonBlocking), cuda::kSuccess);
  ASSERT_EQ((device.call<cuda::Event*, unsigned>("cuEventCreate", &event, 2u)), cuda::kSuccess);
  // The stream waits until this word is 1.
  std::uint32_t* word = nullptr;
  ASSERT_EQ((device.call<void**, std::size_t, unsigned>("cuMemHostAlloc",
                                                        reinterpret_cast<void**>(&word), 4, 2u)),
            cuda::kSuccess);
  *word = 0;
  ASSERT_EQ(
      (device.call<cuda::Stream, cuda::DevicePointer, std::uint32_t, unsigned>(
          "cuStreamWaitValue32_v2", stream, reinterpret_cast<cuda::DevicePointer>(word), 1u, 0u)),
      cuda::kSuccess);
  ASSERT_EQ((device.call<cuda::Event, cuda::Stream>("cuEventRecord", event, stream)),
            cuda::kSuccess);
  const Event fence{reinterpret_cast<std::uintptr_t>(event)};
  bool passed = true;
  EXPECT_EQ(driver.event_passed(fence, &passed), Status::ok) << driver.last_error();
  EXPECT_FALSE(passed);
  // Nothing that the driver does waits for the engine's stream.
  cycle();
  EXPECT_EQ(driver.event_passed(fence, &passed), Status::ok);
  EXPECT_FALSE(passed);
  *static_cast<volatile std::uint32_t*>(word) = 1;
  EXPECT_EQ(device.api().StreamSynchronize(stream), cuda::kSuccess);
  EXPECT_EQ(driver.event_passed(fence, &passed), Status::ok) << driver.last_error();
  EXPECT_TRUE(passed);
  EXPECT_EQ((device.call<cuda::Event>("cuEventDestroy_v2", event)), cuda::kSuccess);
  EXPECT_EQ(device.api().StreamDestroy(stream), cuda::kSuccess);
  EXPECT_EQ((device.call<void*>("cuMemFreeHost", word)), cuda::kSuccess);
}

TEST_F(CudaDriverTest, NeitherFailsDuringAGraphCaptureNorBreaksIt) {
  const CudaDevice device;
  cuda::Stream stream = nullptr;
  cuda::Event event = nullptr;
  ASSERT_EQ(device.api().StreamCreate(&stream, cuda::kStreamNonBlocking), cuda::kSuccess);
  ASSERT_EQ((device.call<cuda::Event*, unsigned>("cuEventCreate", &event, 2u)), cuda::kSuccess);
  // 0 is CU_STREAM_CAPTURE_MODE_GLOBAL, which engines capture in.
  ASSERT_EQ((device.call<cuda::Stream, int>("cuStreamBeginCapture_v2", stream, 0)), cuda::kSuccess);
  const auto use = [&] {
    bool passed = false;
    cycle();
    EXPECT_EQ(driver.event_passed(Event{reinterpret_cast<std::uintptr_t>(event)}, &passed),
              Status::ok)
        << driver.last_error();
  };
  std::thread(use).join();
  use();
  void* graph = nullptr;
  EXPECT_EQ((device.call<cuda::Stream, void**>("cuStreamEndCapture", stream, &graph)),
            cuda::kSuccess);
  EXPECT_NE(graph, nullptr);
  EXPECT_EQ((device.call<void*>("cuGraphDestroy", graph)), cuda::kSuccess);
  EXPECT_EQ((device.call<cuda::Event>("cuEventDestroy_v2", event)), cuda::kSuccess);
  EXPECT_EQ(device.api().StreamDestroy(stream), cuda::kSuccess);
}

TEST_F(CudaDriverTest, GivesMemoryBackToTheDevice) {
  const std::size_t bytes = std::size_t{4} << 30;
  MemoryInfo before;
  MemoryInfo during;
  MemoryInfo after;
  Handle handle;
  ASSERT_EQ(driver.memory_info(&before), Status::ok);
  ASSERT_EQ(driver.create(bytes, &handle), Status::ok) << driver.last_error();
  ASSERT_EQ(driver.memory_info(&during), Status::ok);
  ASSERT_EQ(driver.destroy(handle, bytes), Status::ok);
  ASSERT_EQ(driver.memory_info(&after), Status::ok);
  EXPECT_LE(during.free + bytes / 2, before.free);
  EXPECT_GE(after.free, during.free + bytes / 2);
}

}  // namespace
}  // namespace kvcached
