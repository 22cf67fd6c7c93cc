#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <span>

namespace kvcached {

/// A word to sleep on while it holds what was seen.
struct FutexSleep {
  const std::atomic<std::uint32_t>* word = nullptr;
  std::uint32_t seen = 0;
};

/// Sleeps while `*word == seen`, until woken or until `timeout` has passed. Works across
/// processes that share the word's memory. May return early; the caller looks again.
void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t seen,
                std::chrono::nanoseconds timeout) noexcept;

/// Sleeps while every word is as it was seen, otherwise as futex_wait(). At most 128 words.
void futex_wait_any(std::span<const FutexSleep> words, std::chrono::nanoseconds timeout) noexcept;

/// Wakes everybody who sleeps on the word.
void futex_wake(const std::atomic<std::uint32_t>& word) noexcept;

}  // namespace kvcached
