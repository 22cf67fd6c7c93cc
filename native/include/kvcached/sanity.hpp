#pragma once

#include <cstdint>

namespace kvcached {

/// What memory is filled with while KVCACHED_SANITY_CHECK is on, before an engine gets it and when
/// it is released.
///
/// Repeated, 0x3f is between 0.5 and 2 in every floating-point format that caches use: 1.81 as
/// float16, 0.75 as bfloat16 and float32, 1.88 as float8 e4m3, 1.75 as e5m2, and 63 as int8. So
/// whoever takes it for keys and values gets other tokens (0x22 would pass for zero as bfloat16),
/// and whoever masks it gets the same ones: masked positions are multiplied by zero, which a NaN
/// or an infinity would survive.
inline constexpr std::uint8_t kSanityFill = 0x3f;

}  // namespace kvcached
