#pragma once

#include <cstddef>
#include <map>

namespace kvcached {

/// A set of bytes, kept as ranges [begin, end) that never touch each other.
class ByteRanges {
 public:
  void add(std::size_t begin, std::size_t end);
  void remove(std::size_t begin, std::size_t end);

  /// Whether every byte of [begin, end) is in the set.
  [[nodiscard]] bool contains(std::size_t begin, std::size_t end) const;

  /// Begin to end of each range.
  [[nodiscard]] const std::map<std::size_t, std::size_t>& ranges() const noexcept {
    return ranges_;
  }

 private:
  std::map<std::size_t, std::size_t> ranges_;
};

}  // namespace kvcached
