#pragma once

#include <cstdint>
#include <string>

#include "kvcached/status.hpp"

namespace kvcached {

/// A file held open, with bytes of it locked by open-file-description locks.
///
/// A lock goes with the process, however it ends. A forked child would keep the description,
/// and so the locks, alive after its parent's death; it is therefore closed in every child. There
/// is room for 256 of them in a process; one more is out_of_memory.
class FileLock {
 public:
  FileLock() = default;
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();

  /// Creates a file that did not exist, mode 0600, and locks its first byte. `busy` where it
  /// exists.
  [[nodiscard]] static Status create(const std::string& path, FileLock* lock);
  /// Opens an existing file without locking it.
  [[nodiscard]] static Status open(const std::string& path, FileLock* lock);
  /// Opens a file, made with `mode` where there was none, without locking it.
  [[nodiscard]] static Status open_or_create(const std::string& path, unsigned mode,
                                             FileLock* lock);

  /// Locks a byte; `busy` where somebody living holds it.
  [[nodiscard]] Status try_lock(std::uint32_t byte = 0) const noexcept;
  void unlock(std::uint32_t byte = 0) const noexcept;
  /// Whether another process, or another description in this one, has locked a byte.
  [[nodiscard]] bool held_elsewhere(std::uint32_t byte = 0) const noexcept;
  /// Whether the path still names this file.
  [[nodiscard]] bool is_current(const std::string& path) const noexcept;

  [[nodiscard]] int fd() const noexcept { return fd_; }

 private:
  [[nodiscard]] Status adopt(int fd);
  void close() noexcept;

  int fd_ = -1;
};

}  // namespace kvcached
