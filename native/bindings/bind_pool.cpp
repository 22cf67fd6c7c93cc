#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "bindings.hpp"
#include "kvcached/pool.hpp"

namespace nb = nanobind;

namespace kvcached::bindings {

namespace {

Pool::Clock::time_point after(double seconds) {
  return Pool::Clock::now() +
         std::chrono::duration_cast<Pool::Clock::duration>(std::chrono::duration<double>(seconds));
}

void construct(Pool* self, const std::vector<std::string>& paths, std::uint32_t least_slack,
               std::uint32_t most_slack) {
  std::vector<std::unique_ptr<Row>> rows;
  for (const std::string& path : paths) {
    std::unique_ptr<Row> row;
    std::string error;
    const Status status = Row::attach(path, &row, &error);
    check(status, error);
    const RowFacts& facts = row->facts();
    if (facts.mode != RowMode::elastic) {
      throw Error(Status::unsupported, path + ": the rank runs vanilla: " + facts.reason);
    }
    if (!rows.empty() && (facts.num_blocks != rows[0]->facts().num_blocks ||
                          facts.blocks_per_extent != rows[0]->facts().blocks_per_extent ||
                          facts.pinned_extents != rows[0]->facts().pinned_extents)) {
      throw Error(Status::invalid_argument, path + ": its extents differ from rank 0's");
    }
    rows.push_back(std::move(row));
  }
  if (rows.empty()) throw Error(Status::invalid_argument, "a pool needs the row of a rank");
  new (self) Pool(std::move(rows), {least_slack, most_slack});
  std::string error;
  if (const Status status = self->watch_leases(&error); status != Status::ok) {
    self->~Pool();
    throw Error(status, error);
  }
}

std::vector<std::tuple<std::uint32_t, std::uint32_t>> committed_units(const Pool& pool) {
  const ExtentTable& extents = pool.extents();
  const auto committed = [&extents](std::uint32_t extent) {
    for (std::size_t rank = 0; rank < extents.ranks(); ++rank) {
      if (extents.row(rank).state(extent) != ExtentState::committed) return false;
    }
    return true;
  };
  std::vector<std::tuple<std::uint32_t, std::uint32_t>> units;
  for (std::uint32_t at = extents.pinned(); at < extents.num_extents(); ++at) {
    if (!committed(at)) continue;
    const Row::Request unit = extents.unit_of(at);
    units.emplace_back(unit.first, unit.count);
    at += unit.count - 1;
  }
  return units;
}

bool ensure(Pool& pool, std::uint32_t blocks, double seconds) {
  if (pool.num_unhashed() >= blocks) return true;
  const nb::gil_scoped_release release;
  return pool.ensure(blocks, after(seconds));
}

template <typename Id>
using Ids = nb::ndarray<Id, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void take_into(Pool& pool, const Ids<std::int64_t>& ids) {
  if (!pool.take_all({ids.data(), ids.size()})) {
    throw nb::value_error("more blocks asked for than are free");
  }
}

void give(Pool& pool, const Ids<const std::int64_t>& ids) {
  if (!pool.give_all({ids.data(), ids.size()})) {
    throw nb::value_error("a block was returned that is not in use");
  }
}

}  // namespace

void bind_pool(nb::module_& module) {
  nb::class_<Pool>(module, "Pool",
                   "The scheduler's side of the page table: which block to hand out, which "
                   "extents to want or release. One thread at a time.")
      .def("__init__", &construct, nb::arg("paths"), nb::arg("least_slack") = 1,
           nb::arg("most_slack") = 10, "Attaches to the rows of all ranks, in rank order.")
      .def_prop_ro("num_free", &Pool::num_free, "Blocks to hand out: unhashed and cached.")
      .def_prop_ro("num_unhashed", &Pool::num_unhashed, "Free blocks that hold no prefix.")
      .def_prop_ro("num_cached", &Pool::num_cached, "Free blocks that hold a prefix.")
      .def_prop_ro("cache_held_extents", &Pool::cache_held_extents,
                   "Extents that only cached blocks keep from being released.")
      .def_prop_ro("num_used", &Pool::num_used)
      .def_prop_ro("num_usable", &Pool::num_usable, "Blocks of committed extents.")
      .def_prop_ro("num_growable", &Pool::num_growable,
                   "Blocks that memory not yet taken could back, as far as is known.")
      .def_prop_ro("num_blocks", [](const Pool& pool) { return pool.extents().num_blocks(); })
      .def_prop_ro("blocks_per_extent",
                   [](const Pool& pool) { return pool.extents().blocks_per_extent(); })
      .def_prop_ro("usable_extents", [](const Pool& pool) { return pool.extents().usable(); })
      .def_prop_ro("empty_extents", [](const Pool& pool) { return pool.extents().empty(); })
      .def_prop_ro("wanted_extents", [](const Pool& pool) { return pool.extents().wanted(); })
      .def_prop_ro("releasing_extents", [](const Pool& pool) { return pool.extents().releasing(); })
      .def_prop_ro("slack_target", &Pool::slack_target, "Extents to keep free ahead of need.")
      .def_prop_ro("denied", &Pool::denied,
                   "Memory was refused and nothing has changed since, as far as is known.")
      .def_prop_ro("denied_recently", &Pool::denied_recently,
                   "Memory was refused within the last ten seconds.")
      .def_prop_ro("in_flight", &Pool::in_flight, "A pager owes an answer.")
      .def_prop_ro("dead_row", &Pool::dead_row, "The row of a rank that died, or ''.")
      .def("take_into", &take_into, nb::arg("ids"),
           "Fills an array of 64-bit ids with blocks taken out, lowest first. Raises ValueError, "
           "and takes none, where fewer are free.")
      .def("give", &give, nb::arg("ids"),
           "Returns the blocks of an array of 64-bit ids. Raises ValueError, and returns none, "
           "where one is not in use or comes twice.")
      .def("give_rest", &Pool::give_rest, nb::arg("first"),
           "Returns every used block from this one on.")
      .def("regard_as_cached", &Pool::regard_as_cached, nb::arg("blocks"),
           "So many used blocks hold nothing but prefixes that the engine could drop.")
      .def("ensure", &ensure, nb::arg("blocks"), nb::arg("seconds"),
           "Tries to have `blocks` unhashed free blocks within `seconds`. False is an ordinary "
           "allocation miss.")
      .def("expect", &Pool::expect, nb::arg("blocks"), nb::arg("refill") = 0,
           "The next steps are expected to take this many free blocks: wants what is missing "
           "without waiting, and keeps that much ahead. Where something is missing, `refill` "
           "blocks are wanted in all, and may stay.")
      .def(
          "wait", [](Pool& pool, double seconds) { pool.wait(after(seconds)); },
          nb::call_guard<nb::gil_scoped_release>(), nb::arg("seconds"),
          "Sleeps until a pager answers, at most `seconds`.")
      .def("begin_step", &Pool::begin_step, nb::arg("step"),
           "Blocks freed from now on are fenced by this step.")
      .def("processed", &Pool::processed, nb::arg("step"),
           "Every step up to this one has been processed.")
      .def("balance", &Pool::balance, nb::arg("idle"),
           "Takes answers in, keeps the slack ahead and releases what is beyond it.")
      .def("end_step", &Pool::end_step, nb::arg("expected"), nb::arg("refill"), nb::arg("demanded"),
           nb::arg("keep_cached"),
           "demand(), expect() and balance(False) in one call. Returns whether cached blocks have "
           "to go: coldest(keep_cached) says which, or owed().")
      .def("set_limit", &Pool::set_limit, nb::arg("bytes"),
           "Most physical bytes a rank may hold; 0: no bound but the driver's.")
      .def("coldest", &Pool::coldest, nb::arg("keep"),
           "Cached blocks to evict so that at most `keep` remain, in extents for no more than "
           "`keep`; coldest extents first.")
      .def("ask", &Pool::ask, nb::arg("blocks"),
           "A request waits for so many free blocks: the ledger hears of it until the next step.")
      .def("demand", &Pool::demand, nb::arg("blocks"),
           "The requests at hand will take this many free blocks, however many steps that takes.")
      .def("owed", &Pool::owed, "Cached blocks to evict because the ledger asks for memory.")
      .def("keep", &Pool::keep, nb::arg("blocks"),
           "The oldest running request holds so many blocks; no neighbour gets at those.")
      .def("promise", &Pool::promise, nb::arg("blocks"),
           "So many free blocks are promised to a request that will take them unasked; they stay "
           "free until told otherwise.")
      .def("hold_at_least", &Pool::hold_at_least, nb::arg("blocks"),
           "No release leaves fewer blocks with memory, used ones included, until told otherwise.")
      .def_prop_ro("num_settled", &Pool::num_settled,
                   "Blocks of all committed extents, those withheld apart.")
      .def_prop_ro("num_withheld", &Pool::num_withheld,
                   "Free blocks of extents that are being emptied for somebody else.")
      .def("stop_emptying", &Pool::stop_emptying,
           "Those extents stay until the next balance(), and their free blocks go out again.")
      .def_prop_ro(
          "pressure",
          [](Pool& pool) {
            const Pressure found =
                pool.leases() == nullptr ? Pressure{} : pool.leases()->pressure();
            return std::make_tuple(found.soft, found.hard);
          },
          "(soft, hard) extents that neighbours or people ask for now.")
      .def(
          "wait_for_memory",
          [](Pool& pool, double seconds) { pool.wait_for_memory(after(seconds)); },
          nb::call_guard<nb::gil_scoped_release>(), nb::arg("seconds"),
          "Sleeps until what was refused may be had, at most `seconds`.")
      .def(
          "wait_for_bell",
          [](Pool& pool, double seconds) {
            const auto timeout = std::chrono::duration_cast<std::chrono::nanoseconds>(
                std::chrono::duration<double>(seconds));
            if (pool.leases() != nullptr) pool.leases()->wait_for_bell(timeout);
          },
          nb::call_guard<nb::gil_scoped_release>(), nb::arg("seconds"),
          "Sleeps until somebody wants something of this engine's leases, at most `seconds`. "
          "May be called by another thread than the rest.")
      .def(
          "ring",
          [](Pool& pool) {
            if (pool.leases() != nullptr) pool.leases()->ring();
          },
          "Wakes who sleeps in wait_for_bell().")
      .def_prop_ro("has_leases", [](Pool& pool) { return pool.leases() != nullptr; })
      .def_prop_ro(
          "has_orders",
          [](Pool& pool) { return pool.leases() != nullptr && pool.leases()->has_orders(); },
          "Somebody has changed a lease by hand, and nobody has said that it is carried out.")
      .def(
          "orders_done",
          [](Pool& pool) {
            if (pool.leases() != nullptr) pool.leases()->orders_done();
          },
          "Reports orders given by hand as carried out.")
      .def(
          "units", &committed_units,
          "(first, count) of every unit that is committed on every rank, the pinned extents apart: "
          "one handle a region part backs each.")
      .def("in_order", &Pool::in_order, "Free block ids in the order of handing out.");
}

}  // namespace kvcached::bindings
