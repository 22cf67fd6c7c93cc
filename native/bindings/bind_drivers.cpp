#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>
#include <time.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <tuple>
#include <vector>

#include "bindings.hpp"
#include "kvcached/driver.hpp"

namespace nb = nanobind;

namespace kvcached::bindings {

namespace {

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

void check_driver(const Driver& driver, Status status, const char* call) {
  check(status, std::string(driver.name()) + " " + call + ": " + driver.last_error());
}

using Clock = std::chrono::steady_clock;

/// Wall-clock and processor nanoseconds of the calling thread since its construction.
class Stopwatch {
 public:
  Stopwatch() : wall_(Clock::now()), processor_(processor_now()) {}

  std::tuple<std::uint64_t, std::uint64_t> read() const {
    const auto wall = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - wall_);
    return {static_cast<std::uint64_t>(wall.count()), processor_now() - processor_};
  }

 private:
  static std::uint64_t processor_now() {
    timespec now{};
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
           static_cast<std::uint64_t>(now.tv_nsec);
  }

  Clock::time_point wall_;
  std::uint64_t processor_;
};

/// (wall, processor) nanoseconds of commit, release and destroy, for all extents together.
using BareTimes = std::vector<std::tuple<std::uint64_t, std::uint64_t>>;

/// Commits and releases extents with nothing but the driver's calls, at the addresses and in the
/// order of a pager: each extent has `parts` parts, and the parts of one number lie together.
BareTimes time_bare_calls(Driver& driver, std::size_t part_bytes, std::size_t parts,
                          std::size_t extents) {
  const std::size_t bytes = part_bytes * parts * extents;
  void* base = nullptr;
  check_driver(driver, driver.reserve(bytes, &base), "reserve");
  const auto at = [&](std::size_t extent, std::size_t part) {
    return static_cast<char*>(base) + (part * extents + extent) * part_bytes;
  };
  std::vector<Handle> handles(parts * extents);
  BareTimes times;
  const Stopwatch committing;
  for (std::size_t extent = 0; extent < extents; ++extent) {
    for (std::size_t part = 0; part < parts; ++part) {
      Handle& handle = handles[extent * parts + part];
      check_driver(driver, driver.create(part_bytes, &handle), "create");
      check_driver(driver, driver.map(at(extent, part), part_bytes, handle), "map");
      check_driver(driver, driver.set_access(at(extent, part), part_bytes), "set_access");
    }
  }
  times.push_back(committing.read());
  const Stopwatch releasing;
  for (std::size_t extent = extents; extent-- > 0;) {
    for (std::size_t part = 0; part < parts; ++part) {
      check_driver(driver, driver.unmap(at(extent, part), part_bytes), "unmap");
    }
  }
  times.push_back(releasing.read());
  const Stopwatch destroying;
  for (std::size_t extent = extents; extent-- > 0;) {
    for (std::size_t part = 0; part < parts; ++part) {
      check_driver(driver, driver.destroy(handles[extent * parts + part], part_bytes), "destroy");
    }
  }
  times.push_back(destroying.read());
  check_driver(driver, driver.unreserve(base, bytes), "unreserve");
  return times;
}

}  // namespace

void bind_drivers(nb::module_& module) {
  nb::class_<Driver>(module, "Driver",
                     "The virtual-memory calls of one device. Sizes in bytes, addresses as "
                     "integers; a refused call raises Error and changes nothing.")
      .def_prop_ro("name", &Driver::name, "'cuda', 'host' or 'sim'.")
      .def_prop_ro("granularity", &Driver::granularity, "The smallest physical unit in bytes.")
      .def_prop_ro("device_id", &Driver::device_id,
                   "What tells the device from every other: \"GPU-\" and its UUID, or \"host\".")
      .def_prop_ro("max_mappings", &Driver::max_mappings,
                   "How many mappings a process may hold; 0: no bound.")
      .def(
          "probe", [](Driver& driver) { check_driver(driver, driver.probe(), "probe"); },
          "Raises Error where the device cannot be used.")
      .def(
          "memory_info",
          [](Driver& driver) {
            MemoryInfo info;
            check_driver(driver, driver.memory_info(&info), "memory_info");
            return std::make_tuple(info.free, info.total);
          },
          "(free, total) bytes of the device.")
      .def(
          "reserve",
          [](Driver& driver, std::size_t bytes) {
            void* address = nullptr;
            check_driver(driver, driver.reserve(bytes, &address), "reserve");
            return reinterpret_cast<std::uintptr_t>(address);
          },
          nb::arg("bytes"), "Address space without memory under it.")
      .def(
          "unreserve",
          [](Driver& driver, std::uintptr_t address, std::size_t bytes) {
            check_driver(driver, driver.unreserve(pointer(address), bytes), "unreserve");
          },
          nb::arg("address"), nb::arg("bytes"), "Returns address space.")
      .def(
          "create",
          [](Driver& driver, std::size_t bytes) {
            Handle handle;
            check_driver(driver, driver.create(bytes, &handle), "create");
            return handle.value;
          },
          nb::arg("bytes"), "Takes physical memory; returns its handle.")
      .def(
          "destroy",
          [](Driver& driver, std::uint64_t handle, std::size_t bytes) {
            check_driver(driver, driver.destroy({handle}, bytes), "destroy");
          },
          nb::arg("handle"), nb::arg("bytes"), "Gives physical memory back.")
      .def(
          "map",
          [](Driver& driver, std::uintptr_t address, std::size_t bytes, std::uint64_t handle) {
            check_driver(driver, driver.map(pointer(address), bytes, {handle}), "map");
          },
          nb::arg("address"), nb::arg("bytes"), nb::arg("handle"), "Puts a handle at an address.")
      .def(
          "unmap",
          [](Driver& driver, std::uintptr_t address, std::size_t bytes) {
            check_driver(driver, driver.unmap(pointer(address), bytes), "unmap");
          },
          nb::arg("address"), nb::arg("bytes"), "Takes a handle out of the address space.")
      .def(
          "set_access",
          [](Driver& driver, std::uintptr_t address, std::size_t bytes) {
            check_driver(driver, driver.set_access(pointer(address), bytes), "set_access");
          },
          nb::arg("address"), nb::arg("bytes"), "Lets the device read and write.")
      .def("time_bare_calls", &time_bare_calls, nb::call_guard<nb::gil_scoped_release>(),
           nb::arg("part_bytes"), nb::arg("parts"), nb::arg("extents"),
           "For benchmarks: commits and releases extents with the driver's calls alone, without "
           "a pager. Returns (wall, processor) nanoseconds of the thread for all extents together, "
           "for create + map + set_access, for unmap and for destroy. Raises Error at the first "
           "refusal, with memory left behind.");
  module.def("host_driver", &make_host_driver, nb::arg("budget_bytes") = 0,
             "This machine's memory, at most `budget_bytes` of it (0: what the machine has).");
  module.def("cuda_driver", &make_cuda_driver, nb::arg("ordinal") = 0,
             "A CUDA device's memory, through the driver found at run time.");
}

}  // namespace kvcached::bindings
