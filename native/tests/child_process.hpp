#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <stdexcept>
#include <utility>

namespace kvcached {

/// A forked child that lives until it is killed, and says one number when it is ready. It never
/// returns into the test's own code.
class ChildProcess {
 public:
  /// `prepare` runs in the child and returns the number to report. What it holds on its stack must
  /// stay alive while the child does: it calls `stay` at the end instead of returning.
  template <typename Prepare>
  explicit ChildProcess(Prepare&& prepare) {
    int ends[2];
    if (::pipe(ends) != 0) throw std::runtime_error("pipe");
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(ends[0]);
      prepare([&](int report) {
        if (::write(ends[1], &report, sizeof report) != sizeof report) ::_exit(99);
        for (;;) ::pause();
      });
      ::_exit(98);
    }
    ::close(ends[1]);
    if (::read(ends[0], &report_, sizeof report_) != sizeof report_) report_ = -1;
    ::close(ends[0]);
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess() { kill(); }

  /// What the child said, or -1 where it ended without a word.
  [[nodiscard]] int report() const noexcept { return report_; }
  [[nodiscard]] pid_t pid() const noexcept { return pid_; }

  /// Kills the child with SIGKILL and waits until it is gone.
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  int report_ = -1;
};

/// Forks a process that does nothing until it is killed, and outlives its parent. Returns once it
/// runs.
inline pid_t fork_idle_process() {
  int ends[2];
  if (::pipe(ends) != 0) return -1;
  const pid_t child = ::fork();
  char running = 0;
  if (child == 0) {
    // Where the test itself is killed, nobody else would end it.
    ::alarm(60);
    if (::write(ends[1], &running, 1) != 1) ::_exit(99);
    for (;;) ::pause();
  }
  const bool runs = ::read(ends[0], &running, 1) == 1;
  ::close(ends[0]);
  ::close(ends[1]);
  return runs ? child : -1;
}

}  // namespace kvcached
