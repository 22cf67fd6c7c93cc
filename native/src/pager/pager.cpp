#include "kvcached/pager.hpp"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "kvcached/futex.hpp"

namespace kvcached {

namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;

// How often to look at events and step numbers while a release waits for them. They change
// without a wake-up, because a wake-up would be a system call in every step.
constexpr microseconds kFencePoll{500};
// How long a released handle may wait for another use. Longer than a few decode steps; short
// enough that an idle engine's memory is back well within a second.
constexpr milliseconds kKeepHandles{200};
constexpr milliseconds kIdle{1000};
// How often the device is asked and dead neighbours are looked for: while somebody waits for
// memory, and otherwise.
constexpr milliseconds kWatch{100};
constexpr milliseconds kWatchIdle{500};
// A run of wanted units ends with one wait for their zeroes and one answer. The wait takes about
// 10 us and a unit 40, so beyond this there is nothing to gain and the scheduler would only learn
// later what it has.
constexpr std::size_t kLongestRun = 32;
// A run, or a run of releases, makes nobody wait longer than this and one unit more.
constexpr milliseconds kLongestTurn{1};

}  // namespace

template <typename Move>
void Pager::moving(Move move) {
  if (lease_ == nullptr) {
    move();
    return;
  }
  lease_->begin_move();
  move();
  const std::uint64_t held = backing_.held_bytes();
  lease_->end_move(held);
  // At most what was granted before, so it cannot be refused.
  if (held != charged_) (void)lease_->charge(held);
  charged_ = held;
}

Status Pager::commit_accounted(Row::Request unit, bool insist) {
  const Status status = begin_accounted(unit, insist);
  return status == Status::ok ? finish_accounted() : status;
}

Status Pager::finish_accounted() {
  Status status = Status::ok;
  moving([&] { status = backing_.finish_commits(); });
  if (status != Status::ok) refusal_ = backing_.last_error();
  return status;
}

Status Pager::begin_accounted(Row::Request unit, bool insist) {
  std::uint64_t limit = options_.limit_bytes;
  if (row_ != nullptr) limit = row_->header().limit_bytes.load(std::memory_order_acquire);
  if (lease_ != nullptr) {
    limit = 0;  // the lease's, which may have changed since
    const std::uint64_t bytes =
        backing_.held_bytes() + backing_.bytes_to_commit(unit.first, unit.count);
    const Grant answer = insist ? lease_->resize(bytes) : lease_->charge(bytes);
    if (answer != Grant::granted) {
      refusal_ = std::string(to_string(answer)) + " for " + std::to_string(bytes) + " bytes";
      return Status::out_of_memory;
    }
    charged_ = bytes;
  }
  Status status = Status::ok;
  moving([&] { status = backing_.begin_commit(unit.first, unit.count, limit); });
  if (status != Status::ok) {
    refusal_ = backing_.last_error();
    // The device has less than the ledger thinks.
    looked_after_ = {};
  }
  return status;
}

void Pager::look_after_lease(Clock::time_point now) {
  if (lease_ == nullptr) return;
  Ledger& ledger = lease_->ledger();
  const bool contended = ledger.table().header().contended.load(std::memory_order_acquire) != 0;
  const milliseconds every = contended ? kWatch : kWatchIdle;
  if (now - looked_after_ < every) return;
  looked_after_ = now;
  lease_->seen();
  const std::uint64_t now_ns = monotonic_ns();
  const auto age =
      static_cast<std::uint64_t>(std::chrono::duration_cast<nanoseconds>(every).count());
  if (ledger.sample_due(age * 9 / 10, now_ns)) {
    const auto sample = ledger.begin_sample();
    MemoryInfo device;
    if (sample && driver_->memory_info(&device) == Status::ok) {
      ledger.end_sample(*sample, device, now_ns);
    }
  }
  (void)ledger.sweep(lease_->slot());
}

void Pager::launched(std::uint64_t step, Event event) {
  if (launches_.add(step, event) && row_ != nullptr) note_passed(step);
}

// By two threads, the later step perhaps first.
void Pager::note_passed(std::uint64_t step) {
  std::atomic<std::uint64_t>& last = row_->header().passed_step;
  std::uint64_t seen = last.load(std::memory_order_relaxed);
  while (seen < step && !last.compare_exchange_weak(seen, step, std::memory_order_release,
                                                    std::memory_order_relaxed)) {
  }
}

Status Pager::zero(std::uint64_t step, Stream stream, std::string* error) {
  if (step == 0) {
    *error = "zero() ahead of step 0, which is none";
    return Status::invalid_argument;
  }
  const Status status = zeroes_.queue(stream, step);
  if (status != Status::ok) *error = driver_->last_error();
  return status;
}

std::string Pager::last_error() {
  const std::lock_guard lock(error_mutex_);
  return last_error_;
}

std::string Pager::violation() {
  const std::lock_guard lock(error_mutex_);
  return violation_;
}

void Pager::run() {
  // For whoever looks at a process with many threads; at most 15 letters.
  (void)pthread_setname_np(pthread_self(), "kvcached-pager");
  RowHeader& header = row_->header();
  for (;;) {
    // Before the look at `stopping_`, or a stop() in between would wait for the sleep's end.
    const std::uint32_t seen = header.doorbell.load(std::memory_order_seq_cst);
    if (stopping_.load(std::memory_order_acquire)) return;
    bool kept = false;
    const Releases releases = turn(&kept);
    if (releases == Releases::ready) continue;
    // Asleep only by the pool's knowledge: it looks at the flag after it has rung.
    header.pager_sleeps.store(1, std::memory_order_seq_cst);
    if (header.doorbell.load(std::memory_order_seq_cst) == seen) {
      nanoseconds pause = kIdle;
      if (lease_ != nullptr) pause = contended() ? kSweep : kWatchIdle;
      if (kept) pause = kKeepHandles / 2;
      if (releases == Releases::wait) pause = kFencePoll;
      futex_wait(header.doorbell, seen, pause);
    }
    header.pager_sleeps.store(0, std::memory_order_seq_cst);
  }
}

void Pager::turn() {
  bool kept = false;
  (void)turn(&kept);
}

Pager::Releases Pager::turn(bool* kept) {
  serve_requests();
  const Releases releases = serve_releases(Clock::now() + kLongestTurn);
  const Clock::time_point now = Clock::now();
  *kept = backing_.keeps_handles();
  // Kept for nobody while somebody waits for memory.
  const auto older_than = contended() ? Clock::time_point::max() : now - kKeepHandles;
  if (*kept) moving([&] { *kept = backing_.trim(older_than) != 0; });
  look_after_lease(now);
  publish();
  return releases;
}

void Pager::serve_requests() {
  Row::Request unit;
  // The first unit is answered for at once: somebody may wait for it alone.
  std::size_t most = 1;
  while (row_->pop(&unit)) {
    if (row_->state(unit.first).load(std::memory_order_acquire) == ExtentState::wanted) {
      begin(unit);
      if (run_.size() < most && Clock::now() - run_began_ < kLongestTurn) continue;
      most = std::min(2 * most, kLongestRun);
      finish_run();
    } else {
      plan_release(unit);
    }
  }
  finish_run();
}

void Pager::plan_release(Row::Request unit) {
  const std::uint64_t fence = row_->fence(unit.first).load(std::memory_order_acquire);
  if (fence != kNeverUsable) {
    releases_.push_back({unit, fence});
    return;
  }
  // It gives nothing back that was not free before it was asked for, so that the refusal which
  // undoes it stays worth remembering: no new capacity_epoch.
  const std::uint64_t zeroed_ahead_of = zeroes_.withdraw(unit.first);
  if (zeroed_ahead_of > passed_step()) {
    releases_.push_back({unit, zeroed_ahead_of, false});
  } else {
    release(unit);
    publish();
    row_->answer();
  }
}

void Pager::begin(Row::Request unit) {
  if (run_.empty()) run_began_ = Clock::now();
  Status status = begin_accounted(unit, false);
  if (status != Status::ok && (!releases_.empty() || backing_.keeps_handles())) {
    // What is on its way out, or kept, may be what is missing here. What has its memory already
    // does not wait for that.
    finish_run();
    run_began_ = Clock::now();
    serve_releases();
    moving([&] { backing_.trim(Clock::time_point::max()); });
    status = begin_accounted(unit, false);
  }
  if (status == Status::ok) {
    run_.push_back({unit, backing_.take_unzeroed()});
  } else {
    answer(unit, status);
    row_->answer();
  }
}

void Pager::finish_run() {
  if (run_.empty()) return;
  const Status status = finish_accounted();
  const auto spent = std::chrono::duration_cast<nanoseconds>(Clock::now() - run_began_);
  if (status == Status::ok) {
    row_->header().commit_ns.fetch_add(static_cast<std::uint64_t>(spent.count()),
                                       std::memory_order_relaxed);
  }
  for (Begun& begun : run_) {
    // Ahead of the answer: see ZeroQueue.
    if (status == Status::ok) zeroes_.add(begun.unit.first, std::move(begun.unzeroed));
    answer(begun.unit, status);
  }
  run_.clear();
  row_->answer();
}

void Pager::answer(Row::Request unit, Status status) {
  RowHeader& header = row_->header();
  const bool committed = status == Status::ok;
  (committed ? header.commits : header.denials).fetch_add(unit.count, std::memory_order_relaxed);
  if (!committed) {
    const std::lock_guard lock(error_mutex_);
    last_error_ = refusal_;
  }
  // Before the extent can be used, so that nobody answers with it first.
  if (!backing_.violation().empty()) {
    const std::lock_guard lock(error_mutex_);
    violation_ = backing_.violation();
  }
  publish();
  set_states(unit, committed ? ExtentState::committed : ExtentState::denied);
}

// Not before the fence has passed: a step up to there may have been planned and not begun here, and
// its blocks still wait for their zeroes.
bool Pager::still_zeroed(Release* waiting, std::uint64_t over) {
  waiting->fence = std::max(waiting->fence, zeroes_.withdraw(waiting->unit.first));
  return waiting->fence > over;
}

void Pager::release(Row::Request unit) {
  RowHeader& header = row_->header();
  const auto begin = Clock::now();
  moving([&] { backing_.release(unit.first, unit.count); });
  const auto spent = std::chrono::duration_cast<nanoseconds>(Clock::now() - begin);
  header.releases.fetch_add(unit.count, std::memory_order_relaxed);
  header.release_ns.fetch_add(static_cast<std::uint64_t>(spent.count()), std::memory_order_relaxed);
  set_states(unit, ExtentState::absent);
}

Pager::Releases Pager::serve_releases(Clock::time_point until) {
  if (releases_.empty()) return Releases::none;
  RowHeader& header = row_->header();
  if (const auto passed = launches_.retire(*driver_)) note_passed(*passed);
  const std::uint64_t over =
      std::min(header.processed_step.load(std::memory_order_acquire), passed_step());
  bool any = false;
  bool news = false;
  bool ready = false;
  auto left = releases_.begin();
  for (Release& waiting : releases_) {
    // Looked at no more once the time is up: there may be thousands.
    ready = ready || (any && waiting.fence <= over && Clock::now() >= until);
    if (ready || waiting.fence > over || still_zeroed(&waiting, over)) {
      *left++ = waiting;
      continue;
    }
    release(waiting.unit);
    any = true;
    news = news || waiting.news;
  }
  releases_.erase(left, releases_.end());
  if (any) {
    publish();
    if (news) header.capacity_epoch.fetch_add(1, std::memory_order_release);
    row_->answer();
  }
  if (ready) return Releases::ready;
  return releases_.empty() ? Releases::none : Releases::wait;
}

bool Pager::contended() const noexcept {
  return lease_ != nullptr && lease_->ledger().table().header().contended.load() != 0;
}

void Pager::set_states(Row::Request unit, ExtentState state) {
  // The first one last: the pool looks at it alone, and may write the others once it has changed.
  for (std::uint32_t extent = unit.first + unit.count; extent-- > unit.first;) {
    row_->state(extent).store(state, std::memory_order_release);
  }
}

void Pager::publish() {
  RowHeader& header = row_->header();
  header.held_bytes.store(backing_.held_bytes(), std::memory_order_relaxed);
  header.mapped_bytes.store(backing_.mapped_bytes(), std::memory_order_relaxed);
}

}  // namespace kvcached
