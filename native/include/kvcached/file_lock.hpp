#pragma once

#include <string>

#include "kvcached/status.hpp"

namespace kvcached {

/// A file held open, with its first byte locked by an open-file-description lock.
///
/// The lock goes with the process, however it ends. A forked child would keep the description,
/// and so the lock, alive after its parent's death; it is therefore closed in every child. There
/// is room for 256 of them in a process; one more is out_of_memory.
class FileLock {
 public:
  FileLock() = default;
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();

  /// Creates a file that did not exist, mode 0600, and locks it. `busy` where it exists.
  [[nodiscard]] static Status create(const std::string& path, FileLock* lock);
  /// Opens an existing file without locking it.
  [[nodiscard]] static Status open(const std::string& path, FileLock* lock);

  /// Locks an opened file; `busy` where somebody living holds it.
  [[nodiscard]] Status try_lock() const noexcept;
  /// Whether another process, or another description in this one, holds the lock.
  [[nodiscard]] bool held_elsewhere() const noexcept;
  /// Whether the path still names this file.
  [[nodiscard]] bool is_current(const std::string& path) const noexcept;

  [[nodiscard]] int fd() const noexcept { return fd_; }

 private:
  [[nodiscard]] Status adopt(int fd);
  void close() noexcept;

  int fd_ = -1;
};

}  // namespace kvcached
