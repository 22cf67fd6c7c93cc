#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kvcached/backing.hpp"
#include "kvcached/driver.hpp"
#include "kvcached/geometry.hpp"
#include "kvcached/launches.hpp"
#include "kvcached/ledger.hpp"
#include "kvcached/page_table.hpp"
#include "kvcached/status.hpp"
#include "kvcached/zero_queue.hpp"

namespace kvcached {

/// The account of its device that a pager joins.
struct PagerLedger {
  std::string path;
  /// Whether other users of the directory's group may join.
  bool shared = false;
  /// The row and sizes are filled in by the pager.
  LeaseTerms terms;
  /// How long to wait for neighbours to give back what the pinned extents need.
  std::chrono::milliseconds patience{20'000};
};

/// What a pager needs to know beside its geometry. Sizes in bytes.
struct PagerOptions {
  std::string path;
  std::string engine;
  std::string layout;
  std::uint32_t rank = 0;
  /// Most physical memory to hold; 0: whatever the driver gives.
  std::uint64_t limit_bytes = 0;
  /// Extents from 0 on that are committed at start and never released.
  std::uint32_t pinned_extents = 1;
  /// The account to join; nothing: what the driver gives is taken, up to the limit.
  std::optional<PagerLedger> ledger = std::nullopt;
  /// The largest part of a unit to back with one handle; 0: what the driver finds useful.
  std::uint64_t max_handle_bytes = 0;
  /// Whether fresh and released memory is filled with kSanityFill, and watched.
  bool sanity_check = false;
  /// Whether fresh memory is left to zero(), which the worker then calls ahead of every step; for
  /// engines whose steps, and all else that writes to the cache, are on one stream. Otherwise, and
  /// with sanity_check, and for the pinned extents, the pager zeroes memory before it answers.
  bool zero_in_steps = false;
};

/// The native thread that makes one rank's row of the page table true.
///
/// It is the only caller of the driver once start() has returned, zero() apart, chooses nothing,
/// and answers every request: COMMITTED or DENIED for WANTED, ABSENT for RELEASING once the fence
/// has passed.
class Pager {
 public:
  Pager(std::unique_ptr<Driver> driver, Geometry geometry, PagerOptions options);
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;
  ~Pager();

  /// Reserves the regions, commits the pinned extents, publishes the row and starts the thread;
  /// all or nothing. `error` says in one line what was refused.
  [[nodiscard]] Status start(std::string* error) { return start(error, true); }

  /// The same without the thread: the caller turns it. For simulations, which choose when.
  [[nodiscard]] Status start_by_hand(std::string* error) { return start(error, false); }

  /// Does what the thread does between two sleeps. For one thread, after start_by_hand().
  void turn();

  /// Stops the thread and removes the row. The regions and what is mapped in them stay until
  /// the pager is destroyed, because tensors may still point there.
  void stop();

  /// How many launches are remembered; an event may be recorded again after that many steps.
  static constexpr std::size_t kMaxLaunches = Launches::kMost;

  /// Whether memory waits for zero(). The worker's thread, ahead of every step.
  [[nodiscard]] bool zeroes_due() const noexcept { return zeroes_.any(); }

  /// Queues the zeroing of all memory that waits for it on the stream on which step `step` is
  /// launched next; launched() of that step, or a later one, follows. The worker's thread. Steps
  /// are above 0 and never go back. `error` says what was refused.
  [[nodiscard]] Status zero(std::uint64_t step, Stream stream, std::string* error);

  /// Tells that step `step` has been launched on this rank, and that `event` passes when the
  /// device is done with it. Called by the worker's thread once a step.
  void launched(std::uint64_t step, Event event);

  /// Tells the ledger what this process will want of the device beside its cache and does not hold
  /// now, in bytes: no cache grows into it. Any thread.
  void reserve(std::uint64_t bytes) noexcept {
    if (lease_ != nullptr) lease_->reserve(bytes);
  }

  /// The last step whose event was seen to have passed.
  [[nodiscard]] std::uint64_t passed_step() const noexcept {
    return row_ == nullptr ? 0 : row_->header().passed_step.load(std::memory_order_acquire);
  }

  [[nodiscard]] Backing& backing() noexcept { return backing_; }
  [[nodiscard]] Row* row() noexcept { return row_.get(); }
  /// The lease in its device's ledger, or nothing.
  [[nodiscard]] Lease* lease() noexcept { return lease_.get(); }
  /// The last refusal of the driver, in one line; empty where there was none.
  [[nodiscard]] std::string last_error();
  /// Where memory was first found written to after its release, in one line; empty: nowhere, or
  /// nobody checks.
  [[nodiscard]] std::string violation();

 private:
  using Clock = std::chrono::steady_clock;

  // How often whoever waits for memory looks whether a neighbour's end brought some.
  static constexpr std::chrono::milliseconds kSweep{200};

  struct Begun {
    Row::Request unit;
    std::vector<ByteRange> unzeroed;
  };
  struct Release {
    Row::Request unit;
    std::uint64_t fence = 0;
    // Whether it was ever free to use, so that its memory is news to whoever was refused.
    bool news = true;
  };

  [[nodiscard]] Status start(std::string* error, bool threaded);
  [[nodiscard]] Status join(RowFacts* facts, std::string* error);
  [[nodiscard]] Status commit_pinned(const RowFacts& facts, std::string* error);
  // The lease first, then the driver; what the driver refuses goes back to the lease.
  [[nodiscard]] Status begin_accounted(Row::Request unit, bool insist);
  [[nodiscard]] Status finish_accounted();
  [[nodiscard]] Status commit_accounted(Row::Request unit, bool insist);
  // Runs what moves memory, with the ledger told of it.
  template <typename Move>
  void moving(Move move);
  [[nodiscard]] bool contended() const noexcept;
  void look_after_lease(Clock::time_point now);
  void run();
  enum class Releases : std::uint8_t { none, wait, ready };
  // One turn; what is left to release, and whether released handles are kept.
  Releases turn(bool* kept);
  void serve_requests();
  // Begins a unit of the run, or refuses it.
  void begin(Row::Request unit);
  // Answers for the units of the run.
  void finish_run();
  void answer(Row::Request unit, Status status);
  void plan_release(Row::Request unit);
  // Drops the zeroing of a unit past its fence that no step has queued. Whether what one has queued
  // may be under way; the unit then waits for that step, too.
  [[nodiscard]] bool still_zeroed(Release* waiting, std::uint64_t over);
  void note_passed(std::uint64_t step);
  void release(Row::Request unit);
  // Releases what is past its fence, for a while. Returns what is left: nothing, only what waits
  // for its fence, or more that could go at once.
  Releases serve_releases(Clock::time_point until = Clock::time_point::max());
  void set_states(Row::Request unit, ExtentState state);
  void publish();

  std::unique_ptr<Driver> driver_;
  PagerOptions options_;
  Backing backing_;
  std::unique_ptr<Row> row_;
  std::unique_ptr<Lease> lease_;
  std::thread thread_;
  int started_by_ = 0;  // a process
  std::atomic<bool> stopping_{false};

  Clock::time_point looked_after_{};
  std::uint64_t charged_ = 0;  // bytes, what the lease was last granted
  std::string refusal_;        // the last one
  // Wanted units whose memory is being zeroed, since when, and how many to gather at most.
  std::vector<Begun> run_;
  Clock::time_point run_began_{};
  std::vector<Release> releases_;
  Launches launches_;
  ZeroQueue zeroes_{backing_};
  std::mutex error_mutex_;
  std::string last_error_;
  std::string violation_;
};

}  // namespace kvcached
