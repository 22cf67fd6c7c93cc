#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "borrowed_driver.hpp"
#include "kvcached/pager.hpp"
#include "kvcached/sim_driver.hpp"
#include "temporary_directory.hpp"

namespace kvcached {

/// The ranks of an engine: a running pager each, on a simulated device of its own. Ends with every
/// device as empty as it was.
class SimulatedRanks {
 public:
  SimulatedRanks(std::size_t count, const Geometry& geometry, SimDriver::Options device,
                 std::uint64_t max_handle_bytes = std::uint64_t{64} << 20,
                 bool zero_in_steps = false) {
    PagerOptions options;
    options.zero_in_steps = zero_in_steps;
    options.max_handle_bytes = max_handle_bytes;
    for (std::size_t rank = 0; rank < count; ++rank) {
      options.path = directory_ / ("engine." + std::to_string(rank) + ".row");
      options.rank = static_cast<std::uint32_t>(rank);
      paths_.push_back(options.path);
      drivers_.push_back(std::make_unique<SimDriver>(device));
      EXPECT_EQ(drivers_.back()->probe(), Status::ok);
      pagers_.push_back(std::make_unique<Pager>(std::make_unique<BorrowedDriver>(driver(rank)),
                                                geometry, options));
      std::string error;
      EXPECT_EQ(pagers_.back()->start(&error), Status::ok) << error;
    }
  }
  SimulatedRanks(const SimulatedRanks&) = delete;
  SimulatedRanks& operator=(const SimulatedRanks&) = delete;
  ~SimulatedRanks() {
    for (std::size_t rank = 0; rank < drivers_.size(); ++rank) {
      pagers_[rank]->stop();
      driver(rank).clear_failures();
      pagers_[rank].reset();
      EXPECT_EQ(driver(rank).snapshot(), SimDriver::Snapshot{}) << "rank " << rank;
      EXPECT_EQ(driver(rank).contract_violations(), 0u) << "rank " << rank;
    }
  }

  [[nodiscard]] std::vector<std::unique_ptr<Row>> attach() const {
    std::vector<std::unique_ptr<Row>> rows(paths_.size());
    for (std::size_t rank = 0; rank < paths_.size(); ++rank) {
      std::string error;
      EXPECT_EQ(Row::attach(paths_[rank], &rows[rank], &error), Status::ok) << error;
    }
    return rows;
  }

  [[nodiscard]] std::size_t size() const noexcept { return pagers_.size(); }
  [[nodiscard]] SimDriver& driver(std::size_t rank) const { return *drivers_[rank]; }
  [[nodiscard]] Pager& pager(std::size_t rank) const { return *pagers_[rank]; }

  /// What a worker does on a rank ahead of a step. A driver that refuses is asked again.
  void zero(std::size_t rank, std::uint64_t step) const {
    std::string error;
    int refusals = 0;
    while (pagers_[rank]->zeroes_due() && pagers_[rank]->zero(step, {}, &error) != Status::ok) {
      ASSERT_LT(++refusals, 100) << error;
    }
  }

  /// Says on every rank that a step has been launched and is over.
  void finish(std::uint64_t step) const {
    for (const auto& pager : pagers_) pager->launched(step, {});
  }

  /// What a kernel does with a block's first byte, in every layer on every rank. A block without
  /// memory is a contract violation of the device, and false.
  [[nodiscard]] bool touch(std::uint32_t block) const {
    bool there = true;
    for (std::size_t rank = 0; rank < size(); ++rank) {
      for (const Span& span : pagers_[rank]->backing().geometry().spans) {
        there = there && driver(rank).touch(at(rank, span, block), span.bytes) == Status::ok;
      }
    }
    return there;
  }
  [[nodiscard]] bool reads_as_zero(std::uint32_t block) const {
    bool zero = true;
    for (std::size_t rank = 0; rank < size(); ++rank) {
      for (const Span& span : pagers_[rank]->backing().geometry().spans) {
        zero = zero && driver(rank).reads_as_zero(at(rank, span, block), span.bytes);
      }
    }
    return zero;
  }

 private:
  [[nodiscard]] void* at(std::size_t rank, const Span& span, std::uint32_t block) const {
    return static_cast<char*>(pagers_[rank]->backing().region(span.region)) + span.offset +
           block * span.stride;
  }

  TemporaryDirectory directory_;
  std::vector<std::string> paths_;
  std::vector<std::unique_ptr<SimDriver>> drivers_;
  std::vector<std::unique_ptr<Pager>> pagers_;
};

}  // namespace kvcached
