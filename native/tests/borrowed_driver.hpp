#pragma once

#include <string>

#include "kvcached/driver.hpp"

namespace kvcached {

/// Hands a pager a driver that the test keeps, so that the test can look at it when the pager is
/// gone.
class BorrowedDriver : public Driver {
 public:
  explicit BorrowedDriver(Driver& driver) : driver_(driver) {}

  [[nodiscard]] const char* name() const noexcept override { return driver_.name(); }
  [[nodiscard]] Status probe() override { return driver_.probe(); }
  [[nodiscard]] std::size_t granularity() const noexcept override { return driver_.granularity(); }
  [[nodiscard]] std::size_t max_mappings() const noexcept override {
    return driver_.max_mappings();
  }
  [[nodiscard]] std::size_t largest_useful_handle() const noexcept override {
    return driver_.largest_useful_handle();
  }
  [[nodiscard]] bool handles_are_worth_keeping() const noexcept override {
    return driver_.handles_are_worth_keeping();
  }
  [[nodiscard]] Status reserve(std::size_t bytes, void** address) override {
    return driver_.reserve(bytes, address);
  }
  [[nodiscard]] Status unreserve(void* address, std::size_t bytes) override {
    return driver_.unreserve(address, bytes);
  }
  [[nodiscard]] Status create(std::size_t bytes, Handle* handle) override {
    return driver_.create(bytes, handle);
  }
  [[nodiscard]] Status destroy(Handle handle, std::size_t bytes) override {
    return driver_.destroy(handle, bytes);
  }
  [[nodiscard]] Status map(void* address, std::size_t bytes, Handle handle) override {
    return driver_.map(address, bytes, handle);
  }
  [[nodiscard]] Status unmap(void* address, std::size_t bytes) override {
    return driver_.unmap(address, bytes);
  }
  [[nodiscard]] Status set_access(void* address, std::size_t bytes) override {
    return driver_.set_access(address, bytes);
  }
  [[nodiscard]] Status scrub(void* address, std::size_t bytes, std::uint8_t byte = 0) override {
    return driver_.scrub(address, bytes, byte);
  }
  [[nodiscard]] Status reads_as(std::uint8_t byte, const void* address, std::size_t bytes,
                                bool* all) override {
    return driver_.reads_as(byte, address, bytes, all);
  }
  [[nodiscard]] Status wait_for_scrubs() override { return driver_.wait_for_scrubs(); }
  [[nodiscard]] Status zero_on(Stream stream, void* address, std::size_t bytes) override {
    return driver_.zero_on(stream, address, bytes);
  }
  [[nodiscard]] bool fresh_memory_is_zero() const noexcept override {
    return driver_.fresh_memory_is_zero();
  }
  [[nodiscard]] Status event_passed(Event event, bool* passed) override {
    return driver_.event_passed(event, passed);
  }
  [[nodiscard]] Status memory_info(MemoryInfo* info) override { return driver_.memory_info(info); }
  [[nodiscard]] std::string last_error() const override { return driver_.last_error(); }

 private:
  Driver& driver_;
};

}  // namespace kvcached
