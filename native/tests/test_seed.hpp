#pragma once

#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>

namespace kvcached {

/// The first seed of a randomised test: KVCACHED_TEST_SEED, or 1. A failing test prints the seed
/// that it ran with.
inline std::uint64_t first_seed() {
  const char* const given = std::getenv("KVCACHED_TEST_SEED");
  return given == nullptr ? 1 : std::strtoull(given, nullptr, 10);
}

/// For SCOPED_TRACE.
inline std::string describe_seed(std::uint64_t seed) {
  return "KVCACHED_TEST_SEED=" + std::to_string(seed);
}

/// The same numbers on every machine: the standard's distributions are not.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : engine_(seed) {}

  /// A number in [least, most].
  std::uint32_t between(std::uint32_t least, std::uint32_t most) {
    return least + static_cast<std::uint32_t>(engine_() % (std::uint64_t{most} - least + 1));
  }
  /// True `percent` times in a hundred.
  bool chance(std::uint32_t percent) { return between(1, 100) <= percent; }

 private:
  std::mt19937_64 engine_;
};

}  // namespace kvcached
