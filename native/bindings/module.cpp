#include "bindings.hpp"

namespace nb = nanobind;

NB_MODULE(_C, module) {
  module.doc() = "The native core of kvcached: drivers, page table, pager and pool.";
  // The tensors of a KV cache live until the interpreter is gone; that is no leak.
  nb::set_leak_warnings(false);
  nb::exception<kvcached::bindings::Error>(module, "Error", PyExc_RuntimeError);
  kvcached::bindings::bind_drivers(module);
  kvcached::bindings::bind_driver_calls(module);
  kvcached::bindings::bind_geometry(module);
  kvcached::bindings::bind_pager(module);
  kvcached::bindings::bind_rows(module);
  kvcached::bindings::bind_ledger(module);
  kvcached::bindings::bind_pool(module);
  kvcached::bindings::bind_block_queue(module);
}
