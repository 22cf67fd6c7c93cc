#include "memfd.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>

namespace kvcached {

// All open files of the process. The lock is held across fork(), so that the child finds the
// list whole.
struct MemfdList {
  std::mutex mutex;
  Memfd* first = nullptr;
  bool watching = false;

  // Never destroyed: a fork may come as late as an exit handler.
  static MemfdList& instance() noexcept {
    static MemfdList* const list = new MemfdList;
    return *list;
  }

  static void before_fork() { instance().mutex.lock(); }
  static void in_parent() { instance().mutex.unlock(); }
  static void in_child() {
    for (Memfd* file = instance().first; file != nullptr; file = file->next_) {
      ::close(file->descriptor_);
      file->descriptor_ = -1;
    }
    instance().first = nullptr;
    instance().mutex.unlock();
  }

  // Returns 0 or an errno.
  int add(Memfd* file) noexcept {
    const std::lock_guard lock(mutex);
    if (!watching) {
      if (const int error = pthread_atfork(before_fork, in_parent, in_child); error != 0) {
        return error;
      }
      watching = true;
    }
    file->next_ = first;
    if (first != nullptr) first->previous_ = file;
    first = file;
    return 0;
  }

  void remove(Memfd* file) noexcept {
    const std::lock_guard lock(mutex);
    (file->previous_ != nullptr ? file->previous_->next_ : first) = file->next_;
    if (file->next_ != nullptr) file->next_->previous_ = file->previous_;
  }
};

Memfd::~Memfd() {
  if (!is_open()) return;
  MemfdList::instance().remove(this);
  ::close(descriptor_);
}

int Memfd::open() noexcept {
  // Growing a file beyond RLIMIT_FSIZE is not only refused: it kills the process with SIGXFSZ.
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < kFileBytes) return EFBIG;
  const int descriptor = ::memfd_create("kvcached", MFD_CLOEXEC);
  if (descriptor < 0) return errno;
  // The size only bounds what a mapping may touch; no memory is taken before allocate().
  int error = ::ftruncate(descriptor, static_cast<off_t>(kFileBytes)) == 0 ? 0 : errno;
  descriptor_ = descriptor;
  if (error == 0) error = MemfdList::instance().add(this);
  if (error != 0) {
    ::close(descriptor);
    descriptor_ = -1;
  }
  return error;
}

int Memfd::allocate(std::uint64_t offset, std::size_t bytes) noexcept {
  // A signal interrupts the call with nothing allocated.
  while (::fallocate(descriptor_, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                     static_cast<off_t>(bytes)) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

int Memfd::discard(std::uint64_t offset, std::size_t bytes) noexcept {
  while (::fallocate(descriptor_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

}  // namespace kvcached
