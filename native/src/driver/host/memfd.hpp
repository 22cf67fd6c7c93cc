#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcached {

/// The anonymous file whose pages are a host driver's physical memory.
///
/// It belongs to the process that opened it. A forked child closes its copy at once
/// (pthread_atfork), because one descriptor left open would keep all pages alive after the
/// owner's death; is_open() is false there.
class Memfd {
 public:
  /// Offsets below this can be allocated. Far more than any machine's memory: the file is sparse.
  static constexpr std::uint64_t kFileBytes = std::uint64_t{1} << 46;

  Memfd() = default;
  Memfd(const Memfd&) = delete;
  Memfd& operator=(const Memfd&) = delete;
  ~Memfd();

  /// Opens the file. Returns 0 or an errno; EFBIG when the process's RLIMIT_FSIZE forbids it.
  [[nodiscard]] int open() noexcept;
  [[nodiscard]] bool is_open() const noexcept { return descriptor_ >= 0; }
  [[nodiscard]] int descriptor() const noexcept { return descriptor_; }

  /// Takes physical memory for a byte range, all of it or none. Returns 0 or an errno. The pages
  /// read as zero.
  [[nodiscard]] int allocate(std::uint64_t offset, std::size_t bytes) noexcept;

  /// Returns a byte range's memory to the kernel. Returns 0 or an errno.
  [[nodiscard]] int discard(std::uint64_t offset, std::size_t bytes) noexcept;

 private:
  friend struct MemfdList;

  int descriptor_ = -1;
  // The process's open files, for the forked child to close.
  Memfd* previous_ = nullptr;
  Memfd* next_ = nullptr;
};

}  // namespace kvcached
