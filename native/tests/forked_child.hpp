#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <utility>

namespace kvcached {

/// Runs a function in a forked child and returns how the child ended, as waitpid reports it. The
/// function's result is the exit status. Faults end the child by their signal, under a sanitizer
/// too.
template <typename Function>
int run_in_child(Function&& function) {
  const pid_t child = ::fork();
  if (child == 0) {
    for (const int number : {SIGSEGV, SIGBUS}) std::signal(number, SIG_DFL);
    // No exit handlers and no leak check: they belong to the parent.
    ::_exit(std::forward<Function>(function)());
  }
  int status = -1;
  if (child > 0) ::waitpid(child, &status, 0);
  return status;
}

/// Whether a child ended by itself with status 0.
inline bool succeeded(int status) { return WIFEXITED(status) && WEXITSTATUS(status) == 0; }

/// Whether a child ended by this signal and nothing else.
inline bool killed_by(int status, int number) {
  return WIFSIGNALED(status) && WTERMSIG(status) == number;
}

}  // namespace kvcached
