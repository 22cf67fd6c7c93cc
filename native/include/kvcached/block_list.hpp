#pragma once

#include <cstdint>
#include <vector>

namespace kvcached {

/// Block ids in the order in which they were used last. Any member leaves in constant time.
class BlockList {
 public:
  static constexpr std::uint32_t kNone = 0xffffffffU;

  explicit BlockList(std::uint32_t num_blocks)
      : previous_(num_blocks + 1, num_blocks),
        next_(num_blocks + 1, num_blocks),
        end_(num_blocks) {}

  void push_back(std::uint32_t block) noexcept {
    const std::uint32_t last = previous_[end_];
    next_[last] = block;
    previous_[block] = last;
    next_[block] = end_;
    previous_[end_] = block;
    ++size_;
  }
  void remove(std::uint32_t block) noexcept {
    next_[previous_[block]] = next_[block];
    previous_[next_[block]] = previous_[block];
    --size_;
  }
  /// The block used longest ago, or kNone.
  [[nodiscard]] std::uint32_t front() const noexcept { return or_none(next_[end_]); }
  /// The one after a member, or kNone.
  [[nodiscard]] std::uint32_t after(std::uint32_t block) const noexcept {
    return or_none(next_[block]);
  }
  [[nodiscard]] std::uint32_t size() const noexcept { return size_; }

 private:
  [[nodiscard]] std::uint32_t or_none(std::uint32_t block) const noexcept {
    return block == end_ ? kNone : block;
  }

  // A ring through one extra element, so that no end needs a special case.
  std::vector<std::uint32_t> previous_;
  std::vector<std::uint32_t> next_;
  std::uint32_t end_;
  std::uint32_t size_ = 0;
};

}  // namespace kvcached
