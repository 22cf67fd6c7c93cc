#include "address_space.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <limits>

namespace kvcached {
namespace {

// Linux 5.14; absent from the C library's headers before glibc 2.35.
constexpr int kMadvPopulateWrite = 23;

constexpr int kReserved = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

char* plus(void* address, std::size_t bytes) noexcept {
  return static_cast<char*>(address) + bytes;
}

// A forked child gets neither the address space (its copy would keep pages alive, and would
// write to the parent's cache) nor anything that was mapped in it. The flag belongs to a mapping,
// so each new one needs it; the kernel then merges it with its neighbours.
int keep_from_children(void* address, std::size_t bytes) noexcept {
  return ::madvise(address, bytes, MADV_DONTFORK) == 0 ? 0 : errno;
}

// Every page now, so that no page fault comes later, inside an engine's step.
int populate(void* address, std::size_t bytes) noexcept {
  while (::madvise(address, bytes, kMadvPopulateWrite) != 0) {
    // Before Linux 5.14: carry on, the pages are allocated and only their faults come later.
    if (errno == EINVAL) return 0;
    if (errno != EINTR) return errno;
  }
  return 0;
}

int map_file(void* address, std::size_t bytes, int protection, int descriptor,
             std::uint64_t offset) noexcept {
  const void* const mapped = ::mmap(address, bytes, protection, MAP_SHARED | MAP_FIXED, descriptor,
                                    static_cast<off_t>(offset));
  return mapped == MAP_FAILED ? errno : keep_from_children(address, bytes);
}

}  // namespace

int reserve_address_space(std::size_t bytes, void** address) noexcept {
  if (bytes > std::numeric_limits<std::size_t>::max() - kReservationAlignment) return ENOMEM;
  const std::size_t padded = bytes + kReservationAlignment;
  void* const start = ::mmap(nullptr, padded, PROT_NONE, kReserved, -1, 0);
  if (start == MAP_FAILED) return errno;
  const std::size_t past = reinterpret_cast<std::uintptr_t>(start) % kReservationAlignment;
  const std::size_t before = past == 0 ? 0 : kReservationAlignment - past;
  char* const aligned = plus(start, before);
  int error = keep_from_children(aligned, bytes);
  if (error == 0 && before != 0 && ::munmap(start, before) != 0) error = errno;
  if (error == 0 && ::munmap(aligned + bytes, kReservationAlignment - before) != 0) error = errno;
  if (error != 0) {
    ::munmap(start, padded);
    return error;
  }
  *address = aligned;
  return 0;
}

int release_address_space(void* address, std::size_t bytes) noexcept {
  return ::munmap(address, bytes) == 0 ? 0 : errno;
}

int expose(void* address, std::size_t bytes, int descriptor, std::uint64_t offset) noexcept {
  // Measured on Linux 6.18, for 64 KiB / 192 KiB / 6 MiB: this 23 / 51 / 1,430 us; mapping without
  // access and then mprotect 32 / 76 / 1,700; MAP_POPULATE instead of the second madvise 34 / 84 /
  // 2,220. Nearly all of it is the kernel zeroing pages.
  int error = map_file(address, bytes, PROT_READ | PROT_WRITE, descriptor, offset);
  if (error == 0) error = populate(address, bytes);
  // Older kernels unmap what was there before they fail: whatever is left, reserve it again.
  if (error != 0) (void)conceal(address, bytes);
  return error;
}

int place(void* address, std::size_t bytes, int descriptor, std::uint64_t offset) noexcept {
  const int error = map_file(address, bytes, PROT_NONE, descriptor, offset);
  if (error != 0) (void)conceal(address, bytes);
  return error;
}

int open_placed(void* address, std::size_t bytes) noexcept {
  if (::mprotect(address, bytes, PROT_READ | PROT_WRITE) != 0) return errno;
  return populate(address, bytes);
}

int conceal(void* address, std::size_t bytes) noexcept {
  const void* const mapped = ::mmap(address, bytes, PROT_NONE, kReserved | MAP_FIXED, -1, 0);
  if (mapped != MAP_FAILED) {
    // Without the flag a child would inherit empty address space: not worth failing for.
    (void)keep_from_children(address, bytes);
    return 0;
  }
  // One mapping over vm.max_map_count the kernel refuses every mmap, even one that would lower the
  // count, and memory could never be given back. Taking access away needs no new mapping: the
  // range faults, and the file behind it lets go of its memory all the same.
  return ::mprotect(address, bytes, PROT_NONE) == 0 ? 0 : errno;
}

}  // namespace kvcached
