#pragma once

#include <ucontext.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>

namespace kvcached {

// Sanitizers do not follow a change of stacks: under them, code that would run in fibers runs a
// whole operation at a time.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kFibers = false;
#else
inline constexpr bool kFibers = true;
#endif

/// A thread of control that runs only while somebody resumes it, so that a test decides at which
/// instruction it stands still. Its body must not let an exception out.
class Fiber {
 public:
  explicit Fiber(std::function<void()> body)
      : body_(std::move(body)), stack_(std::make_unique_for_overwrite<std::byte[]>(kStackBytes)) {
    ::getcontext(&own_);
    own_.uc_stack.ss_sp = stack_.get();
    own_.uc_stack.ss_size = kStackBytes;
    own_.uc_link = &resumer_;
    ::makecontext(&own_, &Fiber::begin, 0);
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  // What an unfinished body holds on its stack is lost: end bodies by an exception.
  ~Fiber() = default;

  /// Runs the body until it yields or ends.
  void resume() {
    Fiber* const outer = std::exchange(current_, this);
    ::swapcontext(&resumer_, &own_);
    current_ = outer;
  }
  /// Back to whoever resumed the running fiber.
  static void yield() {
    Fiber* const fiber = current_;
    ::swapcontext(&fiber->own_, &fiber->resumer_);
  }
  /// The fiber that runs now; nullptr outside of all.
  [[nodiscard]] static Fiber* current() noexcept { return current_; }
  [[nodiscard]] bool ended() const noexcept { return ended_; }

 private:
  static constexpr std::size_t kStackBytes = std::size_t{64} << 10;

  static void begin() {
    Fiber* const fiber = current_;
    fiber->body_();
    fiber->ended_ = true;
  }

  inline static Fiber* current_ = nullptr;

  std::function<void()> body_;
  std::unique_ptr<std::byte[]> stack_;
  ucontext_t own_{};
  ucontext_t resumer_{};
  bool ended_ = false;
};

}  // namespace kvcached
