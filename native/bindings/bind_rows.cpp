#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>

#include "bindings.hpp"
#include "kvcached/page_table.hpp"

namespace nb = nanobind;

namespace kvcached::bindings {

namespace {

nb::dict describe(const Row& row) {
  const RowFacts& facts = row.facts();
  const RowHeader& header = row.header();
  nb::dict out;
  out["mode"] = facts.mode == RowMode::elastic ? "elastic" : "vanilla";
  out["reason"] = static_cast<const char*>(facts.reason);
  out["engine"] = static_cast<const char*>(facts.engine);
  out["driver"] = static_cast<const char*>(facts.driver);
  out["layout"] = static_cast<const char*>(facts.layout);
  out["ledger"] = static_cast<const char*>(facts.ledger);
  out["lease_slot"] = facts.lease_slot == kNoLease ? -1 : static_cast<int>(facts.lease_slot);
  out["pid"] = facts.pid;
  out["rank"] = facts.rank;
  out["num_blocks"] = facts.num_blocks;
  out["blocks_per_extent"] = facts.blocks_per_extent;
  out["num_extents"] = facts.num_extents;
  out["pinned_extents"] = facts.pinned_extents;
  out["max_unit_extents"] = facts.max_unit_extents;
  out["granule_bytes"] = facts.granule_bytes;
  out["extent_bytes"] = facts.extent_bytes;
  out["block_bytes"] = facts.block_bytes;
  out["virtual_bytes"] = facts.virtual_bytes;
  out["limit_bytes"] = header.limit_bytes.load();
  out["held_bytes"] = header.held_bytes.load();
  out["mapped_bytes"] = header.mapped_bytes.load();
  out["used_blocks"] = header.used_blocks.load();
  out["cached_blocks"] = header.cached_blocks.load();
  out["free_blocks"] = header.free_blocks.load();
  out["slack_extents"] = header.slack_extents.load();
  out["waits"] = header.waits.load();
  out["waited_extents"] = header.waited_extents.load();
  out["exposed_extents"] = header.exposed_extents.load();
  out["wait_ns"] = header.wait_ns.load();
  out["longest_wait_ns"] = header.longest_wait_ns.load();
  out["commits"] = header.commits.load();
  out["releases"] = header.releases.load();
  out["denials"] = header.denials.load();
  out["commit_ns"] = header.commit_ns.load();
  out["release_ns"] = header.release_ns.load();
  out["processed_step"] = header.processed_step.load();
  out["passed_step"] = header.passed_step.load();
  return out;
}

nb::bytes committed(const Row& row) {
  std::string flags(row.facts().num_extents, '\0');
  for (std::uint32_t extent = 0; extent < row.facts().num_extents; ++extent) {
    const ExtentState state = row.state(extent).load(std::memory_order_acquire);
    flags[extent] = static_cast<char>(state == ExtentState::committed);
  }
  return nb::bytes(flags.data(), flags.size());
}

}  // namespace

void bind_rows(nb::module_& module) {
  nb::class_<Row>(module, "Row", "One rank's row of a page table, as somebody else sees it.")
      .def_static(
          "attach",
          [](const std::string& path) {
            std::unique_ptr<Row> row;
            std::string error;
            const Status status = Row::attach(path, &row, &error);
            check(status, error);
            return row.release();
          },
          nb::arg("path"), nb::rv_policy::take_ownership,
          "Attaches to a living process's row; Error where there is none.")
      .def_static(
          "vanilla",
          [](const std::string& path, const std::string& engine, const std::string& reason,
             std::uint32_t rank) {
            RowFacts facts;
            facts.mode = RowMode::vanilla;
            facts.rank = rank;
            engine.copy(facts.engine, sizeof facts.engine - 1);
            reason.copy(facts.reason, sizeof facts.reason - 1);
            std::unique_ptr<Row> row;
            std::string error;
            const Status status = Row::create(path, facts, &row, &error);
            check(status, error);
            return row.release();
          },
          nb::arg("path"), nb::arg("engine"), nb::arg("reason"), nb::arg("rank") = 0,
          nb::rv_policy::take_ownership,
          "Publishes that this rank's cache is its engine's own, and why.")
      .def_prop_ro("path", &Row::path)
      .def_prop_ro("owner_alive", &Row::owner_alive)
      .def("describe", &describe, "Facts and counters, by name; sizes in bytes.")
      .def(
          "state",
          [](const Row& row, std::uint32_t extent) {
            if (extent >= row.facts().num_extents) throw nb::index_error("no such extent");
            switch (row.state(extent).load()) {
              case ExtentState::absent:
                return "absent";
              case ExtentState::wanted:
                return "wanted";
              case ExtentState::committed:
                return "committed";
              case ExtentState::releasing:
                return "releasing";
              case ExtentState::denied:
                return "denied";
            }
            return "unknown";
          },
          nb::arg("extent"), "An extent's state.")
      .def("committed", &committed, "A byte for every extent: 1 where it is committed, else 0.")
      .def(
          "fence",
          [](const Row& row, std::uint32_t extent) {
            if (extent >= row.facts().num_extents) throw nb::index_error("no such extent");
            const std::uint64_t fence = row.fence(extent).load();
            return fence == kNeverUsable ? 0 : fence;
          },
          nb::arg("extent"), "The last step that may use a releasing extent; 0: none.");
  module.def("remove_dead_rows", &remove_dead_rows, nb::arg("directory"),
             "Removes the rows that dead processes left; returns their paths.");
}

}  // namespace kvcached::bindings
