#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvcached/bitmap.hpp"
#include "kvcached/block_list.hpp"
#include "kvcached/extent_table.hpp"
#include "kvcached/lease_watch.hpp"
#include "kvcached/page_table.hpp"
#include "kvcached/slack.hpp"

namespace kvcached {

/// The scheduler's side: which block to hand out, which extents to want or release.
///
/// A block is *absent* (no memory), *free*, *cached* (free, but holding a prefix worth keeping),
/// *used*, or *withheld*: free, but its extent is being emptied because somebody else is entitled
/// to the memory. Free blocks go out lowest address first, so that the top of the address space
/// empties; cached ones go out only when no free one is left, least recently used first. Only
/// blocks of extents that are COMMITTED on every rank are ever free.
///
/// One thread at a time. Only ensure() and wait() sleep.
class Pool {
 public:
  static constexpr std::uint32_t kNone = 0xffffffffU;
  using Clock = std::chrono::steady_clock;

  /// `rows`: one a rank, all of one geometry.
  Pool(std::vector<std::unique_ptr<Row>> rows, SlackBounds slack);

  /// Answers to the ledgers that the rows name from here on; nothing where they name none.
  /// `error` says what could not be opened.
  [[nodiscard]] Status watch_leases(std::string* error);
  /// The leases, or nothing.
  [[nodiscard]] LeaseWatch* leases() noexcept { return leases_.get(); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Blocks. All are constant time a block.

  /// Takes a block out; the caller has checked that num_free() is not 0.
  [[nodiscard]] std::uint32_t take() noexcept;
  /// Takes a named free or cached block out. False where it is neither.
  [[nodiscard]] bool remove(std::uint32_t block) noexcept;
  /// Returns a used block, to be reused first. False where it was not used.
  [[nodiscard]] bool give(std::uint32_t block) noexcept;
  /// Returns a used block that holds a prefix, to be reused last. False where it was not used.
  [[nodiscard]] bool give_cached(std::uint32_t block) noexcept;
  /// Tells that a cached block's prefix is gone. False where it was not cached.
  [[nodiscard]] bool forget(std::uint32_t block) noexcept;
  /// Whether a block's contents are its own: used or cached.
  [[nodiscard]] bool holds(std::uint32_t block) const noexcept {
    return block < states_.size() &&
           (states_[block] == BlockState::used || states_[block] == BlockState::cached);
  }
  // Many blocks at once, for engines that keep ids in arrays.

  /// Fills `blocks` with blocks taken out, in the order of take(). False, and nothing is taken,
  /// where fewer are there.
  [[nodiscard]] bool take_all(std::span<std::int64_t> blocks) noexcept;
  /// Returns used blocks, to be reused first. False, and nothing is returned, where one of them
  /// was not used or comes twice.
  [[nodiscard]] bool give_all(std::span<const std::int64_t> blocks) noexcept;
  /// Returns every used block from `first` on.
  void give_rest(std::uint32_t first) noexcept;
  /// Tells how many used blocks hold nothing but prefixes that the engine could drop, where it
  /// keeps them itself: the ledger hears of them as cached.
  void regard_as_cached(std::uint32_t blocks) noexcept { kept_by_engine_ = blocks; }

  /// The cached blocks to evict so that at most `keep` remain, in extents that could at most hold
  /// `keep` where nothing else uses them: least recently used first, and with each the other
  /// cached blocks of its unit where that empties the unit.
  [[nodiscard]] std::vector<std::uint32_t> coldest(std::uint32_t keep) const;

  /// Cached blocks to evict because the ledger asks for memory: coldest units first, and all that
  /// lie in extents that are being emptied.
  [[nodiscard]] std::vector<std::uint32_t> owed() const;

  /// Blocks that take() can give: free and cached.
  [[nodiscard]] std::uint32_t num_free() const noexcept { return free_.count() + cached_.size(); }
  [[nodiscard]] std::uint32_t num_unhashed() const noexcept { return free_.count(); }
  [[nodiscard]] std::uint32_t num_cached() const noexcept { return cached_.size(); }
  /// Extents, the pinned ones apart, that only cached blocks keep from being released.
  [[nodiscard]] std::uint32_t cache_held_extents() const noexcept { return cache_held_extents_; }
  [[nodiscard]] std::uint32_t num_used() const noexcept {
    return extents_.usable_blocks() - num_free() - withheld_;
  }
  /// Free blocks of extents that are being emptied.
  [[nodiscard]] std::uint32_t num_withheld() const noexcept { return withheld_; }
  /// Lets the extents that are being emptied stay until the next balance(): for an engine that has
  /// promised their free blocks before they were asked for.
  void stop_emptying() { drain(0); }
  /// Blocks of all committed extents: used, free, cached and withheld.
  [[nodiscard]] std::uint32_t num_usable() const noexcept { return extents_.usable_blocks(); }
  /// The same without those withheld.
  [[nodiscard]] std::uint32_t num_settled() const noexcept { return num_usable() - withheld_; }
  /// Free and cached blocks in the order in which take() would give them.
  [[nodiscard]] std::vector<std::uint32_t> in_order() const;

  // Memory.

  /// Blocks that memory not yet taken could still back, as far as is known: 0 after a denial,
  /// until something may have changed. Counts what neighbours owe.
  [[nodiscard]] std::uint32_t num_growable() const;

  /// Tries to have `blocks` free blocks that cost no cached prefix: takes answers in, wants
  /// what is missing and sleeps for it until `deadline`. Returns whether they are there; fewer
  /// is an ordinary allocation miss.
  bool ensure(std::uint32_t blocks, Clock::time_point deadline);

  /// Tells how many free blocks the next steps are expected to take: wants what is missing
  /// without waiting, and until told otherwise keeps that much ahead, beyond the slack. Where
  /// something is missing, as much is wanted as makes `refill` blocks, and that much may stay: a
  /// few large orders instead of a small one in every step.
  void expect(std::uint32_t blocks, std::uint32_t refill = 0);

  /// Tells that a request waits for so many free blocks, all at once: until the next step, that is
  /// what the ledger hears this engine wants.
  void ask(std::uint32_t blocks);

  /// Tells how many free blocks the requests at hand will take, however many steps that takes. The
  /// ledger hears of it, so that neighbours give back in time; nothing is committed for it.
  void demand(std::uint32_t blocks) noexcept { demanded_blocks_ = blocks; }

  /// Sleeps until an extent's state changes on any rank that owes an answer, or `deadline`.
  void wait(Clock::time_point deadline);

  /// Starts a scheduling step: blocks freed from now on are fenced by `step`.
  void begin_step(std::uint64_t step);
  /// Tells the pagers that every step up to `step` has been processed.
  void processed(std::uint64_t step) noexcept;
  /// Takes answers in, keeps the slack ahead of its target and releases what is beyond it. An
  /// idle engine keeps the smallest slack.
  void balance(bool idle);
  /// demand(), expect() and balance() of a busy engine in one, for those that call from Python
  /// while a device waits for them. Returns whether cached blocks have to go: coldest() of
  /// `keep_cached` says which, or owed().
  bool end_step(std::uint32_t expected, std::uint32_t refill, std::uint32_t demanded,
                std::uint32_t keep_cached);

  /// Tells how many blocks the oldest running request holds: no neighbour gets at those.
  void keep(std::uint32_t blocks) noexcept { keep_blocks_ = blocks; }
  /// Tells that so many free blocks are promised to a request that will take them unasked: they
  /// stay free until told otherwise, whoever waits for memory.
  void promise(std::uint32_t blocks) noexcept { promised_blocks_ = blocks; }
  /// Until told otherwise no release leaves fewer than so many blocks with memory, used ones
  /// included: for an engine that has offered them to others for later batches.
  void hold_at_least(std::uint32_t blocks) noexcept { held_blocks_ = blocks; }
  /// Sleeps until what was refused may be had, or `deadline`.
  void wait_for_memory(Clock::time_point deadline);

  /// Most physical bytes a rank may hold (0: no bound but the driver's). Acts at the next commit.
  void set_limit(std::uint64_t bytes) noexcept;

  /// Whether the last request for memory was refused and nothing has changed since.
  [[nodiscard]] bool denied() const noexcept { return denied_; }
  /// Whether anything was refused within the last ten seconds: what is growable is then a guess.
  [[nodiscard]] bool denied_recently() const noexcept;
  /// Whether requests to the pagers are unanswered.
  [[nodiscard]] bool in_flight() const noexcept { return extents_.pending() != 0; }
  [[nodiscard]] const ExtentTable& extents() const noexcept { return extents_; }
  [[nodiscard]] std::uint32_t slack_target() const noexcept { return slack_.target(); }
  [[nodiscard]] Row& row(std::size_t rank) const noexcept { return extents_.row(rank); }
  /// The path of a rank's row whose process is gone; empty while all live.
  [[nodiscard]] std::string dead_row() const;

 private:
  enum class BlockState : std::uint8_t { absent, free, cached, used, withheld };

  // Whether only cached blocks keep a unit from being released.
  [[nodiscard]] bool cache_holds(Row::Request unit) const noexcept {
    return used_in_unit_[unit.first] == 0 && cached_in_unit_[unit.first] != 0 &&
           unit.first >= extents_.pinned();
  }
  void take_back(std::uint32_t block) noexcept;
  void poll();
  void adopt(Row::Request unit);
  void withdraw(Row::Request unit);
  // Wants `extents` more, of the `at_once` that are needed together.
  void grow(std::uint32_t extents, std::uint32_t at_once);
  [[nodiscard]] std::uint32_t left_over(std::uint32_t busy) const noexcept;
  bool sleep_for(std::uint32_t blocks, Clock::time_point deadline);
  /// Extents that so many blocks fill.
  [[nodiscard]] std::uint32_t extents_of(std::uint32_t blocks) const noexcept {
    const std::uint32_t per_extent = extents_.blocks_per_extent();
    return blocks / per_extent + (blocks % per_extent != 0 ? 1 : 0);
  }
  /// Whether somebody waited for memory of this engine's at the last balance().
  [[nodiscard]] bool pressed() const noexcept { return pressure_.soft + pressure_.hard != 0; }
  [[nodiscard]] bool caches_more_than(std::uint32_t blocks) const noexcept;
  void note_wait(std::uint32_t extents, Clock::time_point since) noexcept;
  [[nodiscard]] std::uint32_t growable_extents() const;
  [[nodiscard]] std::uint32_t extents_for(std::uint32_t blocks) const noexcept;
  void tell(std::uint32_t blocks);
  void report();
  void answer_pressure();
  void release_drained();
  [[nodiscard]] bool may_go(Row::Request unit) const noexcept;
  void drain(std::uint32_t extents);
  void recall_promised();
  void set_draining(Row::Request unit, bool draining);
  [[nodiscard]] std::uint32_t capacity_epoch() const noexcept;
  void note_denial();
  void publish() noexcept;

  ExtentTable extents_;
  std::unique_ptr<LeaseWatch> leases_;
  std::vector<BlockState> states_;
  Bitmap free_;
  BlockList cached_;
  std::vector<std::uint32_t> cached_in_extent_;
  std::vector<std::uint32_t> used_in_extent_;
  std::vector<std::uint32_t> used_in_unit_;    // by a unit's first extent
  std::vector<std::uint32_t> cached_in_unit_;  // likewise
  std::uint32_t cache_held_extents_ = 0;
  SlackPolicy slack_;
  Pressure pressure_;                   // as of the last balance()
  std::vector<std::uint8_t> draining_;  // by a unit's first extent
  std::uint32_t draining_extents_ = 0;
  std::uint32_t withheld_ = 0;
  std::uint32_t keep_blocks_ = 0;
  std::uint32_t promised_blocks_ = 0;
  std::uint32_t held_blocks_ = 0;
  std::uint32_t asked_blocks_ = 0;
  std::uint32_t demanded_blocks_ = 0;
  std::uint32_t kept_by_engine_ = 0;
  std::uint32_t given_ = 0;  // extents released under pressure, not reported yet

  std::uint32_t expected_blocks_ = 0;
  std::uint32_t refill_blocks_ = 0;  // at least as many
  std::uint32_t foreseen_ = 0;       // extents that were expected when the last step ended
  std::uint64_t step_ = 0;
  std::uint64_t processed_ = 0;
  std::uint64_t step_wait_ns_ = 0;  // of the current step
  std::uint64_t limit_bytes_ = 0;
  bool denied_ = false;
  std::uint32_t denied_epoch_ = 0;
  Clock::time_point last_denial_{};
  std::uint32_t busy_at_balance_ = 0;
};

}  // namespace kvcached
