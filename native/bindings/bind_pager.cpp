#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>

#include "bindings.hpp"
#include "kvcached/ledger.hpp"
#include "kvcached/pager.hpp"

namespace nb = nanobind;

namespace kvcached::bindings {

namespace {

// A region as a one-dimensional int8 array on its device. It keeps the pager, and so the
// address space, alive.
nb::ndarray<std::int8_t> region_array(nb::handle_t<Pager> self, std::size_t region, int device_type,
                                      int device_id) {
  Pager& pager = nb::cast<Pager&>(self);
  const auto& sizes = pager.backing().geometry().region_bytes;
  if (region >= sizes.size()) throw nb::index_error("no such region");
  if (!pager.backing().reserved()) throw Error(Status::invalid_argument, "region() before start()");
  const std::size_t shape[] = {sizes[region]};
  return nb::ndarray<std::int8_t>(pager.backing().region(region), 1, shape, self, nullptr,
                                  nb::dtype<std::int8_t>(), device_type, device_id);
}

}  // namespace

void bind_pager(nb::module_& module) {
  nb::class_<Pager>(module, "Pager",
                    "The native thread that makes one rank's row of the page table true.")
      .def(
          "__init__",
          [](Pager* self, std::unique_ptr<Driver> driver, const Geometry& geometry,
             std::string path, std::string engine, std::string layout, std::uint32_t rank,
             std::uint64_t limit_bytes, std::uint32_t pinned_extents, std::string ledger,
             bool shared, std::optional<LeaseTerms> terms, std::uint64_t max_handle_bytes,
             bool sanity_check, bool zero_in_steps) {
            PagerOptions options;
            options.path = std::move(path);
            options.engine = std::move(engine);
            options.layout = std::move(layout);
            options.rank = rank;
            options.limit_bytes = limit_bytes;
            options.pinned_extents = pinned_extents;
            options.max_handle_bytes = max_handle_bytes;
            options.sanity_check = sanity_check;
            options.zero_in_steps = zero_in_steps;
            if (!ledger.empty()) {
              options.ledger.emplace();
              options.ledger->path = std::move(ledger);
              options.ledger->shared = shared;
              options.ledger->terms = terms.value_or(LeaseTerms{});
            }
            new (self) Pager(std::move(driver), geometry, std::move(options));
          },
          nb::arg("driver"), nb::arg("geometry"), nb::arg("path"), nb::arg("engine") = "",
          nb::arg("layout") = "", nb::arg("rank") = 0, nb::arg("limit_bytes") = 0,
          nb::arg("pinned_extents") = 1, nb::arg("ledger") = "", nb::arg("shared") = false,
          nb::arg("terms") = nb::none(), nb::arg("max_handle_bytes") = 0,
          nb::arg("sanity_check") = false, nb::arg("zero_in_steps") = false,
          "Takes the driver over; it cannot be used afterwards.")
      .def(
          "start",
          [](Pager& pager) {
            std::string error;
            const Status status = pager.start(&error);
            check(status, error);
          },
          nb::call_guard<nb::gil_scoped_release>(),
          "Reserves the regions, commits the pinned extents, publishes the row; or raises Error "
          "and leaves nothing.")
      .def(
          "start_by_hand",
          [](Pager& pager) {
            std::string error;
            const Status status = pager.start_by_hand(&error);
            check(status, error);
          },
          nb::call_guard<nb::gil_scoped_release>(),
          "The same without the thread: the caller turns it.")
      .def("turn", nb::overload_cast<>(&Pager::turn),
           "Does what the thread does between two sleeps. After start_by_hand().")
      .def("stop", &Pager::stop, nb::call_guard<nb::gil_scoped_release>(),
           "Stops the thread and removes the row.")
      .def_prop_ro("zeroes_due", &Pager::zeroes_due,
                   "Whether memory waits for zero(), which has to come ahead of the next step.")
      .def(
          "zero",
          [](Pager& pager, std::uint64_t step, std::uint64_t stream) {
            std::string error;
            const Status status = pager.zero(step, {stream}, &error);
            check(status, error);
          },
          nb::arg("step"), nb::arg("stream") = 0, nb::call_guard<nb::gil_scoped_release>(),
          "Queues the zeroing of what waits for it on the stream of which step `step` is launched "
          "next, or raises Error.")
      .def(
          "launched",
          [](Pager& pager, std::uint64_t step, std::uint64_t event) {
            pager.launched(step, {event});
          },
          nb::arg("step"), nb::arg("event") = 0,
          "Step `step` is launched on this rank; `event` passes when the device is done with it.")
      .def("reserve", &Pager::reserve, nb::arg("bytes"),
           "What this process will want of the device beside its cache and does not hold now: no "
           "cache on the device grows into it.")
      .def_prop_ro("passed_step", &Pager::passed_step)
      .def_prop_ro_static(
          "max_launches", [](nb::handle) { return Pager::kMaxLaunches; },
          "Launches remembered; an event may be recorded again after that many steps.")
      .def_prop_ro("last_error", &Pager::last_error, "The driver's last refusal, in one line.")
      .def_prop_ro("violation", &Pager::violation,
                   "Where memory was first found written to after its release; empty: nowhere.")
      .def("region", &region_array, nb::arg("region"), nb::arg("device_type") = 1,
           nb::arg("device_id") = 0,
           "A region as an int8 array for DLPack; device types are DLPack's (1 CPU, 2 CUDA). "
           "Uncommitted bytes fault when touched.");
}

}  // namespace kvcached::bindings
