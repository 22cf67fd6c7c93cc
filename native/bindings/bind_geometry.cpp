#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <vector>

#include "bindings.hpp"
#include "kvcached/geometry.hpp"

namespace nb = nanobind;

namespace kvcached::bindings {

namespace {

using SpanTuple = std::tuple<std::uint32_t, std::uint64_t, std::uint64_t, std::uint64_t>;

Geometry make_geometry(std::uint32_t num_blocks, std::vector<std::uint64_t> region_bytes,
                       const std::vector<SpanTuple>& spans, std::uint32_t blocks_per_extent) {
  Geometry geometry;
  geometry.num_blocks = num_blocks;
  geometry.blocks_per_extent = blocks_per_extent;
  geometry.region_bytes = std::move(region_bytes);
  for (const auto& [region, offset, stride, bytes] : spans) {
    geometry.spans.push_back({region, offset, stride, bytes});
  }
  check(geometry.validate(), "geometry: a span leaves its region, or there is none");
  return geometry;
}

}  // namespace

void bind_geometry(nb::module_& module) {
  nb::class_<Geometry>(module, "Geometry", "How block ids become bytes on one rank.")
      .def(
          "__init__",
          [](Geometry* self, std::uint32_t num_blocks, std::vector<std::uint64_t> region_bytes,
             const std::vector<SpanTuple>& spans, std::uint32_t blocks_per_extent) {
            new (self) Geometry(
                make_geometry(num_blocks, std::move(region_bytes), spans, blocks_per_extent));
          },
          nb::arg("num_blocks"), nb::arg("region_bytes"), nb::arg("spans"),
          nb::arg("blocks_per_extent") = 1,
          "Each span is (region, offset, stride, bytes): block b takes `bytes` bytes of its "
          "region from offset + b * stride.")
      .def_ro("num_blocks", &Geometry::num_blocks)
      .def_ro("blocks_per_extent", &Geometry::blocks_per_extent)
      .def_prop_ro("num_extents", &Geometry::num_extents)
      .def("extent_bytes", &Geometry::extent_bytes, nb::arg("granule"),
           "Physical bytes of one extent.")
      .def(
          "bytes_of",
          [](const Geometry& geometry, std::uint32_t first, std::uint32_t count) {
            std::vector<std::tuple<std::uint32_t, std::uint64_t, std::uint64_t>> ranges;
            for (const ByteRange& range : geometry.bytes_of(first, count)) {
              ranges.emplace_back(range.region, range.begin, range.end);
            }
            return ranges;
          },
          nb::arg("first"), nb::arg("count"), "(region, begin, end) of a run of extents.");
  module.def("choose_blocks_per_extent", &choose_blocks_per_extent, nb::arg("geometry"),
             nb::arg("granule"), nb::arg("min_part_bytes") = 0, nb::arg("max_mappings") = 0,
             "The smallest extent whose parts end on granules, within the bounds given.");
}

}  // namespace kvcached::bindings
