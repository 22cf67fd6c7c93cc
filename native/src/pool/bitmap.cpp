#include "kvcached/bitmap.hpp"

#include <bit>

namespace kvcached {

Bitmap::Bitmap(std::uint32_t size) {
  std::size_t bits = size;
  do {
    bits = (bits + 63) / 64;
    levels_.emplace_back(bits == 0 ? 1 : bits, 0);
  } while (bits > 1);
}

void Bitmap::set(std::uint32_t index) noexcept {
  if (test(index)) return;
  ++count_;
  for (auto& level : levels_) {
    std::uint64_t& word = level[index >> 6];
    const bool was_empty = word == 0;
    word |= std::uint64_t{1} << (index & 63);
    if (!was_empty) return;
    index >>= 6;
  }
}

void Bitmap::clear(std::uint32_t index) noexcept {
  if (!test(index)) return;
  --count_;
  for (auto& level : levels_) {
    std::uint64_t& word = level[index >> 6];
    word &= ~(std::uint64_t{1} << (index & 63));
    if (word != 0) return;
    index >>= 6;
  }
}

std::uint32_t Bitmap::first() const noexcept {
  if (count_ == 0) return kNone;
  std::uint32_t index = 0;
  for (auto level = levels_.rbegin(); level != levels_.rend(); ++level) {
    index = (index << 6) + static_cast<std::uint32_t>(std::countr_zero((*level)[index]));
  }
  return index;
}

std::uint32_t Bitmap::last() const noexcept {
  if (count_ == 0) return kNone;
  std::uint32_t index = 0;
  for (auto level = levels_.rbegin(); level != levels_.rend(); ++level) {
    index = (index << 6) + 63 - static_cast<std::uint32_t>(std::countl_zero((*level)[index]));
  }
  return index;
}

std::uint32_t Bitmap::next(std::uint32_t index) const noexcept {
  std::size_t height = 0;
  // Up, until a word has a member to the right; then down its lowest bits.
  for (; height < levels_.size(); ++height) {
    const std::uint32_t bit = index & 63;
    const std::uint32_t word = index >> 6;
    const std::uint64_t right =
        bit == 63 ? 0 : levels_[height][word] & (~std::uint64_t{0} << (bit + 1));
    if (right != 0) {
      std::uint32_t found = (word << 6) + static_cast<std::uint32_t>(std::countr_zero(right));
      while (height-- > 0) {
        found = (found << 6) + static_cast<std::uint32_t>(std::countr_zero(levels_[height][found]));
      }
      return found;
    }
    index = word;
  }
  return kNone;
}

}  // namespace kvcached
