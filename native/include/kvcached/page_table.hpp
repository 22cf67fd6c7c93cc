#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvcached/file_lock.hpp"
#include "kvcached/status.hpp"

namespace kvcached {

/// An extent's state on one rank. The pool writes WANTED, RELEASING and, from DENIED, ABSENT;
/// the pager writes the rest.
enum class ExtentState : std::uint8_t { absent, wanted, committed, releasing, denied };

/// The fence of an extent that one rank has committed and another has refused. No block of it was
/// ever handed out, so nothing has to be over before it goes.
inline constexpr std::uint64_t kNeverUsable = ~std::uint64_t{0};

/// Whether a row moves memory, or says that its engine's cache is its own.
enum class RowMode : std::uint32_t { elastic = 1, vanilla = 2 };

inline constexpr std::uint32_t kNoLease = 0xffffffffU;

/// What does not change while a row lives. Sizes in bytes, texts end with a zero byte.
struct RowFacts {
  std::uint32_t pid = 0;
  RowMode mode = RowMode::elastic;
  std::uint32_t rank = 0;
  std::uint32_t num_blocks = 0;
  std::uint32_t blocks_per_extent = 0;
  std::uint32_t num_extents = 0;
  std::uint32_t ring_slots = 0;
  /// Extents [0, pinned) are committed before the row is published and never released.
  std::uint32_t pinned_extents = 0;
  /// Largest handle the pool should ask for, in extents.
  std::uint32_t max_unit_extents = 1;
  std::uint64_t granule_bytes = 0;
  std::uint64_t extent_bytes = 0;
  std::uint64_t block_bytes = 0;
  std::uint64_t virtual_bytes = 0;
  char driver[16] = {};
  char layout[16] = {};
  char engine[64] = {};
  /// The ledger and the place in it of this rank's lease; kNoLease where it accounts to nobody.
  char ledger[192] = {};
  std::uint32_t lease_slot = kNoLease;
  /// Why the row is vanilla.
  char reason[256] = {};
};

/// The start of a row's file. Counters start at 0 and only grow unless said otherwise.
struct RowHeader {
  std::atomic<std::uint64_t> magic{0};  // written last: who sees it sees the facts
  std::uint64_t format = 0;
  RowFacts facts;

  // Written by the pool.
  alignas(64) std::atomic<std::uint32_t> doorbell{0};  // futex: there is something in the ring
  std::atomic<std::uint32_t> answer_awaited{0};        // the pool sleeps on `answers`
  std::atomic<std::uint64_t> ring_tail{0};
  std::atomic<std::uint64_t> processed_step{0};  // the last step whose output came back
  std::atomic<std::uint64_t> limit_bytes{0};     // not monotonic; 0: none but the driver's
  std::atomic<std::uint32_t> used_blocks{0};     // not monotonic, nor are the three below
  std::atomic<std::uint32_t> cached_blocks{0};
  std::atomic<std::uint32_t> free_blocks{0};
  std::atomic<std::uint32_t> slack_extents{0};
  /// Steps that slept for memory, for how many extents, and for how long: all of them, and those
  /// extents for which no other step was with the device meanwhile.
  std::atomic<std::uint64_t> waits{0};
  std::atomic<std::uint64_t> waited_extents{0};
  std::atomic<std::uint64_t> exposed_extents{0};
  std::atomic<std::uint64_t> wait_ns{0};
  std::atomic<std::uint64_t> longest_wait_ns{0};  // of one step

  // Written by the pager.
  alignas(64) std::atomic<std::uint32_t> answers{0};  // futex: an extent changed its state
  std::atomic<std::uint32_t> pager_sleeps{0};
  std::atomic<std::uint64_t> ring_head{0};
  std::atomic<std::uint64_t> held_bytes{0};    // not monotonic
  std::atomic<std::uint64_t> mapped_bytes{0};  // not monotonic
  std::atomic<std::uint64_t> commits{0};       // extents
  std::atomic<std::uint64_t> releases{0};      // extents
  std::atomic<std::uint64_t> denials{0};       // extents
  std::atomic<std::uint64_t> commit_ns{0};     // time spent in commits
  std::atomic<std::uint64_t> release_ns{0};
  std::atomic<std::uint64_t> passed_step{0};  // every step up to it is done on the device
  /// Counts what may let a refused commit succeed: releases and changes of the limit.
  std::atomic<std::uint32_t> capacity_epoch{0};
};

/// One rank's row of an engine's page table: a file in shared memory that its worker creates
/// and the scheduler attaches to.
///
/// The file's first byte is locked by its creator for as long as it lives, so that a file left
/// behind by a killed process is recognised, whoever has its pid now.
class Row {
 public:
  /// A request to the pager: `count` extents from `first` on, by their state.
  struct Request {
    std::uint32_t first = 0;
    std::uint32_t count = 0;
  };

  /// Creates and locks a row. A file of that name left by a dead process is replaced; a live
  /// one is `busy`. `error` says in one line what was wrong, with the path.
  [[nodiscard]] static Status create(const std::string& path, const RowFacts& facts,
                                     std::unique_ptr<Row>* row, std::string* error);

  /// Attaches to a row whose creator is alive. not_found where there is none, or a dead one's;
  /// unsupported where its format is another version's.
  [[nodiscard]] static Status attach(const std::string& path, std::unique_ptr<Row>* row,
                                     std::string* error);

  Row(const Row&) = delete;
  Row& operator=(const Row&) = delete;
  /// Unmaps; the creator also removes the file.
  ~Row();

  [[nodiscard]] RowHeader& header() const noexcept { return *header_; }
  [[nodiscard]] const RowFacts& facts() const noexcept { return header_->facts; }
  [[nodiscard]] std::atomic<ExtentState>& state(std::uint32_t extent) const noexcept {
    return states_[extent];
  }
  /// The step number that must be over before a RELEASING extent may go.
  [[nodiscard]] std::atomic<std::uint64_t>& fence(std::uint32_t extent) const noexcept {
    return fences_[extent];
  }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  /// Whether the process that created the row still lives.
  [[nodiscard]] bool owner_alive() const noexcept;

  /// Pool: appends a request and wakes the pager if it sleeps. There is a slot for every extent,
  /// and an extent waits in at most one, so this cannot overflow.
  void push(Request request) noexcept;
  /// Pool: wakes the pager after a change that is not in the ring.
  void ring_doorbell() noexcept;
  /// Pager: takes the oldest request.
  [[nodiscard]] bool pop(Request* request) noexcept;
  /// Pager: tells the pool that states changed.
  void answer() noexcept;

 private:
  Row() = default;

  std::string path_;
  FileLock lock_;
  bool creator_ = false;
  std::size_t bytes_ = 0;
  void* base_ = nullptr;
  int mapped_by_ = 0;
  RowHeader* header_ = nullptr;
  std::atomic<std::uint64_t>* fences_ = nullptr;
  std::atomic<std::uint64_t>* ring_ = nullptr;
  std::atomic<ExtentState>* states_ = nullptr;
};

/// Removes the row files of dead processes in a directory. Returns their paths.
[[nodiscard]] std::vector<std::string> remove_dead_rows(const std::string& directory);

/// The suffix of every row file.
inline constexpr std::string_view kRowSuffix = ".row";

}  // namespace kvcached
