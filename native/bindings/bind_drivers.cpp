#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>
#include <tuple>

#include "bindings.hpp"
#include "kvcached/driver.hpp"
#include "kvcached/sim_driver.hpp"

namespace nb = nanobind;

namespace kvcached::bindings {

namespace {

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

void check_driver(const Driver& driver, Status status, const char* call) {
  check(status, std::string(driver.name()) + " " + call + ": " + driver.last_error());
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
          nb::arg("address"), nb::arg("bytes"), "Lets the device read and write.");
  module.def("host_driver", &make_host_driver, nb::arg("budget_bytes") = 0,
             "This machine's memory, at most `budget_bytes` of it (0: what the machine has).");
  module.def(
      "sim_driver",
      [](std::size_t capacity_bytes, std::size_t granularity) -> std::unique_ptr<Driver> {
        return std::make_unique<SimDriver>(
            SimDriver::Options{.capacity_bytes = capacity_bytes, .granularity = granularity});
      },
      nb::arg("capacity_bytes"), nb::arg("granularity") = std::size_t{2} << 20,
      "A device that exists on paper, for simulations: touching its memory faults.");
  module.def("cuda_driver", &make_cuda_driver, nb::arg("ordinal") = 0,
             "A CUDA device's memory, through the driver found at run time.");
}

}  // namespace kvcached::bindings
