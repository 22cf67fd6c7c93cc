#pragma once

#include <nanobind/nanobind.h>

#include <stdexcept>
#include <string>

#include "kvcached/status.hpp"

namespace kvcached::bindings {

/// What Python sees as kvcached._C.Error: an operation that was refused, in one line.
class Error : public std::runtime_error {
 public:
  Error(Status status, const std::string& message)
      : std::runtime_error(message + " (" + to_string(status) + ")") {}
};

/// Throws Error unless the status is ok.
inline void check(Status status, const std::string& message) {
  if (status != Status::ok) throw Error(status, message);
}

void bind_drivers(nanobind::module_& module);
void bind_driver_calls(nanobind::module_& module);
void bind_geometry(nanobind::module_& module);
void bind_pager(nanobind::module_& module);
void bind_pool(nanobind::module_& module);
void bind_block_queue(nanobind::module_& module);
void bind_ledger(nanobind::module_& module);
void bind_rows(nanobind::module_& module);

}  // namespace kvcached::bindings
