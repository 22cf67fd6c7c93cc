// One engine under random load on devices that fail at random: a scheduler's thread, a worker's
// thread with steps in flight, and a pager a rank. It looks for memory taken away under a step, for
// blocks without memory, and for anything lost on the way. It says nothing about speed.

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <tuple>
#include <vector>

#include "kvcached/pool.hpp"
#include "sample_geometry.hpp"
#include "simulated_ranks.hpp"
#include "test_seed.hpp"

namespace kvcached {
namespace {

using Call = SimDriver::Call;
using Clock = Pool::Clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::size_t kGranule = 4096;
constexpr std::size_t kStepsInFlight = 2;

struct Step {
  std::uint64_t number = 0;
  std::vector<std::uint32_t> blocks;
};

/// The worker: launches steps, touches their blocks while they run, and ends them in order.
class Worker {
 public:
  Worker(const SimulatedRanks& ranks, std::uint64_t seed)
      : ranks_(ranks), dice_(seed), thread_([this] { run(); }) {}
  ~Worker() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  /// Returns the last step that is over. Sleeps while too many are in flight.
  std::uint64_t submit(Step step) {
    std::unique_lock lock(mutex_);
    queue_.push_back(std::move(step));
    changed_.notify_all();
    changed_.wait(lock, [&] { return queue_.size() < kStepsInFlight; });
    return over_;
  }
  /// Waits for all of them.
  std::uint64_t drain() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return queue_.empty(); });
    return over_;
  }
  [[nodiscard]] bool touched_a_hole() const { return hole_; }

 private:
  void run() {
    for (;;) {
      Step step;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
        if (queue_.empty()) return;
        step = queue_.front();
      }
      for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
        ranks_.zero(rank, step.number);
        ranks_.pager(rank).launched(step.number, {step.number});
      }
      if (dice_.chance(30)) std::this_thread::sleep_for(microseconds(dice_.between(1, 300)));
      for (std::size_t rank = 0; rank < ranks_.size(); ++rank) ranks_.driver(rank).run_streams();
      for (const std::uint32_t block : step.blocks) {
        if (!ranks_.touch(block)) hole_ = true;
      }
      // The ranks end a step at different times.
      for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
        ranks_.driver(rank).pass({step.number});
        if (dice_.chance(20)) std::this_thread::sleep_for(microseconds(dice_.between(1, 100)));
      }
      {
        const std::lock_guard lock(mutex_);
        over_ = step.number;
        queue_.pop_front();
      }
      changed_.notify_all();
    }
  }

  const SimulatedRanks& ranks_;
  Dice dice_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Step> queue_;
  std::uint64_t over_ = 0;
  bool stopping_ = false;
  std::atomic<bool> hole_{false};
  std::thread thread_;
};

/// With so many ranks, whose fresh memory the pagers zero or the worker does, ahead of its steps.
class PoolStressTest : public testing::TestWithParam<std::tuple<std::size_t, bool>> {};

TEST_P(PoolStressTest, NoStepEverTouchesABlockWithoutMemoryAndNothingIsLost) {
  const auto [num_ranks, zero_in_steps] = GetParam();
  for (std::uint64_t seed = first_seed(), last = seed + 4; seed < last; ++seed) {
    SCOPED_TRACE(describe_seed(seed));
    Dice dice(seed);
    const std::uint32_t num_blocks = dice.between(100, 300);
    Geometry geometry;
    switch (seed % 3) {
      case 0:
        geometry = layers_apart(2, num_blocks, kGranule / 2, 2);
        break;
      case 1:
        geometry = block_major(2, num_blocks, kGranule / 2, 1);
        break;
      default:
        geometry = block_major(1, num_blocks, kGranule * 3 / 4, 3);
    }
    const std::size_t plenty = 1000 * kGranule;
    SimulatedRanks ranks(num_ranks, geometry, {.capacity_bytes = plenty, .granularity = kGranule},
                         4 * kGranule, zero_in_steps);
    Pool pool(ranks.attach(), {1, 6});
    std::set<std::uint32_t> used;
    {
      Worker worker(ranks, seed + 1000);
      // Blocks given back in a step may still be in the hands of the steps in flight: the worker's
      // copies of their lists see to that.
      for (std::uint64_t number = 1; number <= 250; ++number) {
        pool.begin_step(number);
        if (dice.chance(15)) {
          const std::size_t rank = dice.between(0, static_cast<std::uint32_t>(num_ranks) - 1);
          const auto call =
              static_cast<Call>(dice.between(static_cast<std::uint32_t>(Call::create),
                                             static_cast<std::uint32_t>(Call::event_passed)));
          ranks.driver(rank).fail_call(
              call, dice.between(1, 5),
              dice.chance(50) ? Status::out_of_memory : Status::driver_error);
        }
        if (dice.chance(4)) {
          const std::size_t rank = dice.between(0, static_cast<std::uint32_t>(num_ranks) - 1);
          ranks.driver(rank).set_capacity(dice.chance(50) ? plenty
                                                          : dice.between(10, 200) * kGranule);
        }
        if (dice.chance(2)) {
          pool.set_limit(dice.chance(50) ? 0 : dice.between(20, 200) * kGranule);
        }
        const std::uint32_t need = dice.chance(20) ? dice.between(10, 60) : dice.between(0, 6);
        const auto deadline = Clock::now() + milliseconds(2);
        const bool there = pool.ensure(need, deadline);
        ASSERT_EQ(there, pool.num_unhashed() >= need);
        for (std::uint32_t n = 0; n < need && pool.num_free() > 0; ++n) {
          const std::uint32_t block = pool.take();
          ASSERT_NE(block, Pool::kNone);
          ASSERT_TRUE(used.insert(block).second) << "handed out twice";
          for (std::size_t rank = 0; rank < num_ranks; ++rank) {
            ASSERT_EQ(pool.row(rank).state(pool.extents().extent_of(block)),
                      ExtentState::committed);
          }
        }
        const std::uint64_t over = worker.submit({number, {used.begin(), used.end()}});
        // What finishes in this step: some requests one by one, now and then nearly all.
        const std::uint32_t share = dice.chance(5) ? 90 : 8;
        for (auto at = used.begin(); at != used.end();) {
          if (!dice.chance(share)) {
            ++at;
            continue;
          }
          ASSERT_TRUE(dice.chance(30) ? pool.give_cached(*at) : pool.give(*at));
          at = used.erase(at);
        }
        for (const std::uint32_t block : pool.coldest(dice.between(0, 40))) {
          ASSERT_TRUE(pool.forget(block));
        }
        ASSERT_EQ(pool.num_used(), used.size());
        pool.processed(over);
        pool.balance(dice.chance(10));
      }
      pool.processed(worker.drain());
      EXPECT_FALSE(worker.touched_a_hole());
    }
    for (std::size_t rank = 0; rank < num_ranks; ++rank) {
      ranks.driver(rank).clear_failures();
      ranks.driver(rank).set_capacity(plenty);
    }
    for (const std::uint32_t block : used) ASSERT_TRUE(pool.give(block));
    for (const std::uint32_t block : pool.coldest(0)) ASSERT_TRUE(pool.forget(block));
    const auto deadline = Clock::now() + seconds(20);
    do {
      pool.balance(true);
      pool.wait(Clock::now() + milliseconds(5));
    } while ((pool.in_flight() || pool.extents().empty() > 1) && Clock::now() < deadline);
    EXPECT_FALSE(pool.in_flight());
    EXPECT_LE(pool.extents().usable(), 2u) << "the pinned extent and the least slack";
    EXPECT_EQ(pool.num_free(), pool.num_usable());
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, PoolStressTest,
                         testing::Combine(testing::Values(1, 2, 3), testing::Bool()));

}  // namespace
}  // namespace kvcached
