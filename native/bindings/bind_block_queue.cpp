#include <nanobind/stl/vector.h>

#include <cstdint>

#include "bindings.hpp"
#include "kvcached/pool.hpp"

namespace nb = nanobind;

namespace kvcached::bindings {

namespace {

/// A pool behind the interface of an engine's free queue: it hands out the engine's own block
/// objects, which it finds by their index and knows by their `block_id` attribute. In a layout in
/// which the pages of `layers` layers take turns, an extent's worth each, ids jump over those of
/// the other layers.
class BlockQueue {
 public:
  BlockQueue(Pool& pool, nb::list blocks, std::uint32_t layers)
      : pool_(pool),
        blocks_(std::move(blocks)),
        block_id_(nb::steal(PyUnicode_InternFromString("block_id"))),
        layers_(layers) {
    if (nb::len(blocks_) != pool.extents().num_blocks()) {
      throw nb::value_error("the engine and the page table count blocks differently");
    }
    if (layers_ == 0) throw nb::value_error("no layer");
  }

  std::uint32_t num_free() const { return pool_.num_free(); }

  nb::object popleft() {
    const std::uint32_t block = pool_.take();
    if (block == Pool::kNone) throw nb::value_error("no free block");
    return nb::borrow(at(block));
  }

  nb::object popleft_n(std::uint32_t count) {
    if (count > pool_.num_free()) throw nb::value_error("more blocks asked for than are free");
    const nb::object list = nb::steal(PyList_New(count));
    if (!list.is_valid()) nb::raise_python_error();
    for (std::uint32_t index = 0; index < count; ++index) {
      // Takes the reference over.
      PyList_SetItem(list.ptr(), index, nb::borrow(at(pool_.take())).release().ptr());
    }
    return list;
  }

  void remove(nb::handle block) {
    if (!pool_.remove(id_of(block))) throw nb::value_error("remove() of a block that is not free");
  }

  void append(nb::handle block) { give(block, true); }
  void append_n(nb::list blocks) { give_all(blocks, true); }
  void prepend_n(nb::list blocks) { give_all(blocks, false); }

  /// Cached blocks whose prefix the engine has dropped, by index; others are left alone.
  void forget(const std::vector<std::uint32_t>& blocks) {
    for (const std::uint32_t block : blocks) (void)pool_.forget(block);
  }

  /// Whether a block's contents are still its own: used, or cached.
  bool holds(nb::handle block) const { return pool_.holds(id_of(block)); }

  nb::list all_free() const {
    nb::list out;
    for (const std::uint32_t id : pool_.in_order()) out.append(at(id));
    return out;
  }

  nb::object after(nb::object cursor) const {
    nb::list out;
    bool found = cursor.is_none();
    const std::uint32_t stop = found ? 0 : id_of(cursor);
    for (const std::uint32_t id : pool_.in_order()) {
      if (found) out.append(at(id));
      found = found || id == stop;
    }
    return nb::iter(out);
  }

 private:
  [[nodiscard]] nb::handle at(std::uint32_t block) const {
    return PyList_GetItem(blocks_.ptr(), block);
  }

  [[nodiscard]] std::uint32_t id_of(nb::handle block) const {
    PyObject* const number = PyObject_GetAttr(block.ptr(), block_id_.ptr());
    if (number == nullptr) nb::raise_python_error();
    const long long id = PyLong_AsLongLong(number);
    Py_DECREF(number);
    if (id == -1 && PyErr_Occurred() != nullptr) nb::raise_python_error();
    if (id >= 0 && layers_ == 1 && id < pool_.extents().num_blocks()) {
      return static_cast<std::uint32_t>(id);
    }
    // An extent's ids are followed by those of its other layers' pages.
    const long long per_extent = pool_.extents().blocks_per_extent();
    const long long period = per_extent * layers_;
    const long long index = id / period * per_extent + id % period;
    if (id < 0 || id % period >= per_extent || index >= pool_.extents().num_blocks()) {
      throw nb::value_error("no block has this id");
    }
    return static_cast<std::uint32_t>(index);
  }

  void give(nb::handle block, bool cached) {
    const std::uint32_t id = id_of(block);
    if (!(cached ? pool_.give_cached(id) : pool_.give(id))) {
      throw nb::value_error("a block was freed that is not in use");
    }
  }

  void give_all(const nb::list& blocks, bool cached) {
    const Py_ssize_t count = PyList_Size(blocks.ptr());
    for (Py_ssize_t index = 0; index < count; ++index) {
      give(PyList_GetItem(blocks.ptr(), index), cached);
    }
  }

  Pool& pool_;
  nb::list blocks_;
  nb::object block_id_;
  std::uint32_t layers_;
};

}  // namespace

void bind_block_queue(nb::module_& module) {
  nb::class_<BlockQueue>(module, "BlockQueue",
                         "A pool behind the interface of vLLM's FreeKVCacheBlockQueue: blocks "
                         "prepended hold no prefix, blocks appended do.")
      .def(nb::init<Pool&, nb::list, std::uint32_t>(), nb::arg("pool"), nb::arg("blocks"),
           nb::arg("layers") = 1, nb::keep_alive<1, 2>(),
           "`blocks` is the engine's list of all blocks, in the order of their ids.")
      .def_prop_ro("num_free_blocks", &BlockQueue::num_free)
      .def("popleft", &BlockQueue::popleft)
      .def("popleft_n", &BlockQueue::popleft_n, nb::arg("n"))
      .def("remove", &BlockQueue::remove, nb::arg("block"))
      .def("append", &BlockQueue::append, nb::arg("block"))
      .def("append_n", &BlockQueue::append_n, nb::arg("blocks"))
      .def("prepend_n", &BlockQueue::prepend_n, nb::arg("blocks"))
      .def("forget", &BlockQueue::forget, nb::arg("blocks"),
           "Cached blocks whose prefix is gone become free, by their places in the engine's list; "
           "others are ignored.")
      .def("holds", &BlockQueue::holds, nb::arg("block"),
           "Whether what was written to a block is still there for whoever finds its prefix: it is "
           "in use, or cached.")
      .def("get_all_free_blocks", &BlockQueue::all_free)
      .def("iter_blocks_after", &BlockQueue::after, nb::arg("cursor").none(),
           "Free blocks in the order of handing out, after the cursor.");
}

}  // namespace kvcached::bindings
