#pragma once

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvcached/page_table.hpp"
#include "temporary_directory.hpp"

namespace kvcached {

/// The rows of an engine's ranks, with a test in the place of every pager: nothing is answered
/// until the test says so.
class HandPlayedRanks {
 public:
  HandPlayedRanks(std::size_t ranks, RowFacts facts) {
    facts.num_extents = (facts.num_blocks + facts.blocks_per_extent - 1) / facts.blocks_per_extent;
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      facts.rank = static_cast<std::uint32_t>(rank);
      std::string error;
      std::unique_ptr<Row> row;
      if (Row::create(path(rank), facts, &row, &error) != Status::ok) {
        throw std::runtime_error(error);
      }
      for (std::uint32_t extent = 0; extent < facts.pinned_extents; ++extent) {
        row->state(extent) = ExtentState::committed;
      }
      rows_.push_back(std::move(row));
    }
  }

  /// The scheduler's ends.
  [[nodiscard]] std::vector<std::unique_ptr<Row>> attach() const {
    std::vector<std::unique_ptr<Row>> attached(rows_.size());
    for (std::size_t rank = 0; rank < rows_.size(); ++rank) {
      std::string error;
      if (Row::attach(path(rank), &attached[rank], &error) != Status::ok) {
        throw std::runtime_error(error);
      }
    }
    return attached;
  }

  [[nodiscard]] Row& row(std::size_t rank) const { return *rows_[rank]; }

  /// All requests that wait on a rank.
  [[nodiscard]] std::vector<Row::Request> requests(std::size_t rank) const {
    std::vector<Row::Request> requests;
    Row::Request request;
    while (rows_[rank]->pop(&request)) requests.push_back(request);
    return requests;
  }
  void answer(std::size_t rank, Row::Request unit, ExtentState state) const {
    for (std::uint32_t extent = unit.first; extent < unit.first + unit.count; ++extent) {
      rows_[rank]->state(extent) = state;
    }
    rows_[rank]->answer();
  }
  /// Does what all ranks are asked for. Returns how many requests there were.
  std::size_t serve() const {
    std::size_t served = 0;
    for (std::size_t rank = 0; rank < rows_.size(); ++rank) {
      for (const Row::Request unit : requests(rank)) {
        const bool wanted = rows_[rank]->state(unit.first) == ExtentState::wanted;
        answer(rank, unit, wanted ? ExtentState::committed : ExtentState::absent);
        ++served;
      }
    }
    return served;
  }
  /// Ends a rank as its process's death does.
  void lose(std::size_t rank) { rows_[rank].reset(); }

 private:
  [[nodiscard]] std::string path(std::size_t rank) const {
    return directory_ / ("engine." + std::to_string(rank) + ".row");
  }

  TemporaryDirectory directory_;
  std::vector<std::unique_ptr<Row>> rows_;
};

}  // namespace kvcached
