#include <cstddef>

#include "kvcached/pool.hpp"

namespace kvcached {

bool Pool::take_all(std::span<std::int64_t> blocks) noexcept {
  if (blocks.size() > num_free()) return false;
  for (std::int64_t& block : blocks) block = take();
  return true;
}

bool Pool::give_all(std::span<const std::int64_t> blocks) noexcept {
  for (std::size_t given = 0; given < blocks.size(); ++given) {
    const std::int64_t block = blocks[given];
    const bool known = block >= 0 && block < std::int64_t{extents_.num_blocks()};
    if (known && give(static_cast<std::uint32_t>(block))) continue;
    // Nothing has been handed out since, so that every one of them is there to be taken back.
    for (const std::int64_t undo : blocks.first(given)) take_back(static_cast<std::uint32_t>(undo));
    return false;
  }
  return true;
}

void Pool::take_back(std::uint32_t block) noexcept {
  if (states_[block] == BlockState::withheld) {
    states_[block] = BlockState::free;
    free_.set(block);
    --withheld_;
  }
  (void)remove(block);
}

void Pool::give_rest(std::uint32_t first) noexcept {
  for (std::uint32_t block = first; block < extents_.num_blocks(); ++block) (void)give(block);
}

}  // namespace kvcached
