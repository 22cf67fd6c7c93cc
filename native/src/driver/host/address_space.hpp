#pragma once

#include <cstddef>

namespace kvcached {

/// Reservations start at multiples of this, the size of a huge page on x86-64 and Arm64.
inline constexpr std::size_t kReservationAlignment = std::size_t{2} << 20;

/// Address space that faults when touched and that forked children do not have. Where the kernel
/// has names for anonymous memory, /proc/PID/smaps shows it as [anon:kvcached]. Returns 0 or an
/// errno.
[[nodiscard]] int reserve_address_space(std::size_t bytes, void** address) noexcept;

/// Returns reserved address space, and what memory it has, to the kernel. Returns 0 or an errno.
[[nodiscard]] int release_address_space(void* address, std::size_t bytes) noexcept;

/// Makes a concealed part of a reservation readable and writable. It has no memory yet, and reads
/// as zero. Returns 0 or an errno, after which nothing has changed.
[[nodiscard]] int expose(void* address, std::size_t bytes) noexcept;

/// Puts zeroed memory under every page of an exposed part that has none. Returns 0 or an errno,
/// after which some pages may have memory.
[[nodiscard]] int populate(void* address, std::size_t bytes) noexcept;

/// Takes an exposed part back: it faults again, and its memory is the kernel's. Returns 0 or an
/// errno, after which nothing has changed. Fails with ENOMEM only where the part has to be split
/// from an exposed neighbour and the process has all the mappings it may have.
[[nodiscard]] int conceal(void* address, std::size_t bytes) noexcept;

}  // namespace kvcached
