#include "kvcached/futex.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <ctime>

namespace kvcached {

namespace {

// The kernel looks at the 32 bits themselves.
static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

// Linux 5.16; the C library's headers may be older than the kernel.
constexpr long kFutexWaitv = 449;
constexpr std::uint32_t kFutex32 = 2;
struct Waiter {
  std::uint64_t value;
  std::uint64_t address;
  std::uint32_t flags;
  std::uint32_t reserved;
};
constexpr std::size_t kMostWaiters = 128;
// Where the kernel cannot wait for several words: the others are looked at this often.
constexpr std::chrono::milliseconds kLookAround{50};

timespec to_timespec(std::chrono::nanoseconds time) {
  timespec limit{};
  limit.tv_sec = static_cast<time_t>(time.count() / 1'000'000'000);
  limit.tv_nsec = static_cast<long>(time.count() % 1'000'000'000);
  return limit;
}

}  // namespace

void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t seen,
                std::chrono::nanoseconds timeout) noexcept {
  const timespec limit = to_timespec(timeout);
  syscall(SYS_futex, &word, FUTEX_WAIT, seen, &limit, nullptr, 0);
}

void futex_wait_any(std::span<const FutexSleep> words, std::chrono::nanoseconds timeout) noexcept {
  if (words.empty()) {
    const timespec limit = to_timespec(timeout);
    nanosleep(&limit, nullptr);
    return;
  }
  if (words.size() == 1) {
    futex_wait(*words.front().word, words.front().seen, timeout);
    return;
  }
  std::array<Waiter, kMostWaiters> waiters{};
  const std::size_t count = std::min(words.size(), kMostWaiters);
  for (std::size_t index = 0; index < count; ++index) {
    waiters[index].value = words[index].seen;
    waiters[index].address = reinterpret_cast<std::uint64_t>(words[index].word);
    waiters[index].flags = kFutex32;
  }
  // It takes a point in time, not a duration.
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const timespec until = to_timespec(std::chrono::seconds(now.tv_sec) +
                                     std::chrono::nanoseconds(now.tv_nsec) + timeout);
  if (syscall(kFutexWaitv, waiters.data(), count, 0, &until, CLOCK_MONOTONIC) < 0 &&
      (errno == ENOSYS || errno == EPERM)) {
    futex_wait(*words.front().word, words.front().seen,
               std::min<std::chrono::nanoseconds>(timeout, kLookAround));
  }
}

void futex_wake(const std::atomic<std::uint32_t>& word) noexcept {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace kvcached
