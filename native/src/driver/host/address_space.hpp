#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcached {

/// Reservations start at multiples of this, the size of a huge page on x86-64 and Arm64.
inline constexpr std::size_t kReservationAlignment = std::size_t{2} << 20;

/// Address space that faults when touched and that forked children do not have. Returns 0 or an
/// errno.
[[nodiscard]] int reserve_address_space(std::size_t bytes, void** address) noexcept;

/// Returns reserved address space to the kernel. Returns 0 or an errno.
[[nodiscard]] int release_address_space(void* address, std::size_t bytes) noexcept;

/// Puts an allocated range of a file at a reserved address, readable and writable, with every
/// page present. Returns 0 or an errno; after an error the range faults as before.
[[nodiscard]] int expose(void* address, std::size_t bytes, int descriptor,
                         std::uint64_t offset) noexcept;

/// The first half of expose(): the range is in place and still faults. Returns 0 or an errno.
[[nodiscard]] int place(void* address, std::size_t bytes, int descriptor,
                        std::uint64_t offset) noexcept;

/// The second half: opens a range that place() calls have covered. Returns 0 or an errno; after an
/// error parts of the range may be open.
[[nodiscard]] int open_placed(void* address, std::size_t bytes) noexcept;

/// Takes away what the calls above put there: the range faults again. Returns 0 or an errno, after
/// which nothing has changed. Never fails on a range of place() calls, nor where the range has no
/// neighbour that it merged with.
[[nodiscard]] int conceal(void* address, std::size_t bytes) noexcept;

}  // namespace kvcached
