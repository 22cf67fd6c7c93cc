#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <tuple>
#include <vector>

#include "bindings.hpp"
#include "driver_calls.hpp"

namespace nb = nanobind;

namespace kvcached::bindings {

namespace {

using Clock = std::chrono::steady_clock;

std::uint64_t since(Clock::time_point began) {
  const auto spent = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - began);
  return static_cast<std::uint64_t>(spent.count());
}

/// Wall-clock and processor nanoseconds of the calling thread since its construction.
class Stopwatch {
 public:
  Stopwatch() : wall_(Clock::now()), processor_(processor_now()) {}

  std::tuple<std::uint64_t, std::uint64_t> read() const {
    return {since(wall_), processor_now() - processor_};
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

/// (wall, processor) nanoseconds of commit, unmap and destroy, for all handles together.
using CycleTimes = std::vector<std::tuple<std::uint64_t, std::uint64_t>>;

struct Piece {
  std::size_t offset = 0;
  std::size_t bytes = 0;
  std::uint64_t handle = 0;
};

CycleTimes time_pieces(DriverCalls& calls, std::vector<Piece> pieces, std::size_t bytes) {
  const auto guard = calls.enter();
  char* const base = calls.reserve(bytes);
  CycleTimes times;
  const Stopwatch committing;
  for (Piece& piece : pieces) {
    piece.handle = calls.create(piece.bytes);
    calls.map(base + piece.offset, piece.bytes, piece.handle);
    calls.set_access(base + piece.offset, piece.bytes);
  }
  times.push_back(committing.read());
  std::reverse(pieces.begin(), pieces.end());
  const Stopwatch releasing;
  for (const Piece& piece : pieces) calls.unmap(base + piece.offset, piece.bytes);
  times.push_back(releasing.read());
  const Stopwatch destroying;
  for (const Piece& piece : pieces) calls.destroy(piece.handle, piece.bytes);
  times.push_back(destroying.read());
  calls.unreserve(base, bytes);
  return times;
}

CycleTimes time_extents(DriverCalls& calls, std::size_t part_bytes, std::size_t parts,
                        std::size_t extents) {
  std::vector<Piece> pieces;
  for (std::size_t extent = 0; extent < extents; ++extent) {
    for (std::size_t part = 0; part < parts; ++part) {
      pieces.push_back({(part * extents + extent) * part_bytes, part_bytes});
    }
  }
  return time_pieces(calls, std::move(pieces), part_bytes * parts * extents);
}

CycleTimes time_sizes(DriverCalls& calls, const std::vector<std::size_t>& sizes) {
  std::vector<Piece> pieces;
  std::size_t bytes = 0;
  for (const std::size_t size : sizes) {
    pieces.push_back({bytes, size});
    bytes += size;
  }
  return time_pieces(calls, std::move(pieces), bytes);
}

using CallTimes = std::map<std::string, std::vector<std::uint64_t>>;

CallTimes time_each(DriverCalls& calls, std::size_t bytes, std::size_t count, std::size_t live) {
  const auto guard = calls.enter();
  live = std::clamp<std::size_t>(live, 1, std::max<std::size_t>(count, 1));
  char* const base = calls.reserve(bytes * live);
  CallTimes times;
  const auto timed = [&times](const char* name, auto call) {
    std::vector<std::uint64_t>& samples = times[name];
    const Clock::time_point began = Clock::now();
    call();
    samples.push_back(since(began));
  };
  std::vector<std::uint64_t> handles(live);
  for (std::size_t done = 0; done < count; done += live) {
    const std::size_t turn = std::min(live, count - done);
    for (std::size_t n = 0; n < turn; ++n) {
      char* const address = base + n * bytes;
      timed("create", [&] { handles[n] = calls.create(bytes); });
      timed("map", [&] { calls.map(address, bytes, handles[n]); });
      timed("set_access", [&] { calls.set_access(address, bytes); });
    }
    for (std::size_t n = 0; n < turn; ++n) {
      timed("scrub and wait", [&] {
        calls.scrub(base + n * bytes, bytes);
        calls.wait_for_scrubs();
      });
    }
    for (std::size_t n = 0; n < turn; ++n) {
      timed("scrub", [&] { calls.scrub(base + n * bytes, bytes); });
    }
    calls.wait_for_scrubs();
    for (std::size_t n = turn; n-- > 0;) {
      timed("unmap", [&] { calls.unmap(base + n * bytes, bytes); });
      timed("destroy", [&] { calls.destroy(handles[n], bytes); });
    }
  }
  calls.unreserve(base, bytes * live);
  return times;
}

}  // namespace

void bind_driver_calls(nb::module_& module) {
  nb::class_<DriverCalls>(module, "DriverCalls",
                          "A device's virtual-memory calls in native loops that time them, for "
                          "benchmarks. Raises Error at the first refusal, with memory left "
                          "behind.")
      .def_static("of", &calls_of, nb::arg("driver"),
                  "A driver's calls, with all that it adds. Takes the driver over.")
      .def_static("bare_cuda", &bare_cuda_calls, nb::arg("ordinal") = 0,
                  "The functions of the CUDA driver alone.")
      .def("time_extents", &time_extents, nb::call_guard<nb::gil_scoped_release>(),
           nb::arg("part_bytes"), nb::arg("parts"), nb::arg("extents"),
           "Commits and releases extents of `parts` handles each, at the addresses and in the "
           "order of a pager. Returns (wall, processor) nanoseconds of the thread for all of them "
           "together, for create + map + set_access, for unmap and for destroy.")
      .def("time_sizes", &time_sizes, nb::call_guard<nb::gil_scoped_release>(), nb::arg("sizes"),
           "The same for handles of these sizes, side by side.")
      .def("time_each", &time_each, nb::call_guard<nb::gil_scoped_release>(), nb::arg("bytes"),
           nb::arg("count"), nb::arg("live"),
           "Nanoseconds of each of `count` calls of a kind, by its name, on handles of one size, "
           "`live` of them at a time.");
}

}  // namespace kvcached::bindings
