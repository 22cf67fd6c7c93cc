#include "kvcached/file_lock.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <utility>

namespace kvcached {

namespace {

// Descriptors to close in a forked child. A fixed array of atomics, because a child of a
// multi-threaded process may only make async-signal-safe calls.
constexpr std::size_t kMaxOpen = 256;
std::array<std::atomic<int>, kMaxOpen> g_open_plus_one{};

void close_in_child() {
  for (auto& slot : g_open_plus_one) {
    if (const int fd = slot.exchange(0) - 1; fd >= 0) ::close(fd);
  }
}

// False where there is no room for one more.
bool remember(int fd) {
  static const int registered = pthread_atfork(nullptr, nullptr, &close_in_child);
  (void)registered;
  for (auto& slot : g_open_plus_one) {
    int empty = 0;
    if (slot.compare_exchange_strong(empty, fd + 1)) return true;
  }
  return false;
}

// Whether the descriptor was still open in this process (a forked child's copies are closed).
bool forget(int fd) {
  for (auto& slot : g_open_plus_one) {
    int expected = fd + 1;
    if (slot.compare_exchange_strong(expected, 0)) return true;
  }
  return false;
}

struct flock one_byte(short type, std::uint32_t byte) {
  struct flock lock{};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

Status from_errno() {
  switch (errno) {
    case ENOENT:
      return Status::not_found;
    case EEXIST:
    case EAGAIN:
      return Status::busy;
    case ENOSPC:
    case ENOMEM:
      return Status::out_of_memory;
    default:
      return Status::driver_error;
  }
}

}  // namespace

FileLock::FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

FileLock::~FileLock() { close(); }

Status FileLock::adopt(int fd) {
  close();
  if (!remember(fd)) {
    ::close(fd);
    return Status::out_of_memory;
  }
  fd_ = fd;
  return Status::ok;
}

void FileLock::close() noexcept {
  const int fd = std::exchange(fd_, -1);
  if (fd >= 0 && forget(fd)) ::close(fd);
}

Status FileLock::create(const std::string& path, FileLock* lock) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return from_errno();
  if (const Status status = lock->adopt(fd); status != Status::ok) {
    ::unlink(path.c_str());
    return status;
  }
  return lock->try_lock();
}

Status FileLock::open(const std::string& path, FileLock* lock) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return from_errno();
  return lock->adopt(fd);
}

Status FileLock::open_or_create(const std::string& path, unsigned mode, FileLock* lock) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return from_errno();
  // Past the umask; who did not make the file may not, and need not.
  if (mode != 0600) (void)::fchmod(fd, mode);
  return lock->adopt(fd);
}

Status FileLock::try_lock(std::uint32_t byte) const noexcept {
  struct flock lock = one_byte(F_WRLCK, byte);
  return fcntl(fd_, F_OFD_SETLK, &lock) == 0 ? Status::ok : from_errno();
}

void FileLock::unlock(std::uint32_t byte) const noexcept {
  struct flock lock = one_byte(F_UNLCK, byte);
  (void)fcntl(fd_, F_OFD_SETLK, &lock);
}

bool FileLock::held_elsewhere(std::uint32_t byte) const noexcept {
  struct flock lock = one_byte(F_WRLCK, byte);
  if (fcntl(fd_, F_OFD_GETLK, &lock) != 0) return false;
  return lock.l_type != F_UNLCK;
}

bool FileLock::is_current(const std::string& path) const noexcept {
  struct stat mine{};
  struct stat named{};
  return fstat(fd_, &mine) == 0 && stat(path.c_str(), &named) == 0 && mine.st_dev == named.st_dev &&
         mine.st_ino == named.st_ino;
}

}  // namespace kvcached
