#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace kvcached {

/// Sleeps while `*word == seen`, until woken or until `timeout` has passed. Works across
/// processes that share the word's memory. May return early; the caller looks again.
void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t seen,
                std::chrono::nanoseconds timeout) noexcept;

/// Wakes everybody who sleeps on the word.
void futex_wake(const std::atomic<std::uint32_t>& word) noexcept;

}  // namespace kvcached
