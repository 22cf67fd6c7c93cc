#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <new>

#include "kvcached/futex.hpp"
#include "kvcached/page_table.hpp"

namespace kvcached {

namespace {

constexpr std::uint64_t kMagic = 0x776f7264'63766b00;  // "\0kvcdrow", little-endian
constexpr std::uint64_t kFormat = 3;

static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<ExtentState>) == 1);

struct Layout {
  std::size_t fences;
  std::size_t ring;
  std::size_t states;
  std::size_t bytes;
};

Layout layout_of(const RowFacts& facts) {
  Layout layout{};
  layout.fences = (sizeof(RowHeader) + 63) / 64 * 64;
  layout.ring = layout.fences + sizeof(std::uint64_t) * facts.num_extents;
  layout.states = layout.ring + sizeof(std::uint64_t) * facts.ring_slots;
  layout.bytes = layout.states + facts.num_extents;
  return layout;
}

std::string explain(const std::string& path, const char* what) {
  return path + ": " + what + ": " + std::strerror(errno);
}

// Removes a file that was left behind: nobody holds its lock.
void remove_if_dead(const std::string& path) {
  FileLock file;
  if (FileLock::open(path, &file) != Status::ok || file.try_lock() != Status::ok) return;
  if (file.is_current(path)) ::unlink(path.c_str());
}

}  // namespace

Status Row::create(const std::string& path, const RowFacts& facts, std::unique_ptr<Row>* row,
                   std::string* error) {
  std::unique_ptr<Row> made(new Row);
  Status status = Status::busy;
  // Again where a dead engine's file is in the way, or where somebody who removes dead files
  // took ours between its creation and its lock.
  for (int attempt = 0; attempt < 3 && status == Status::busy; ++attempt) {
    status = FileLock::create(path, &made->lock_);
    if (status == Status::busy) remove_if_dead(path);
    if (status == Status::ok && !made->lock_.is_current(path)) status = Status::busy;
  }
  if (status != Status::ok) {
    *error = status == Status::busy ? path + ": held by a running engine"
                                    : explain(path, "cannot create the page table");
    return status;
  }
  made->path_ = path;
  made->creator_ = true;
  RowFacts filled = facts;
  filled.pid = static_cast<std::uint32_t>(getpid());
  filled.ring_slots = std::bit_ceil(facts.num_extents + 1);
  const Layout layout = layout_of(filled);
  // Memory for the whole file now: a full file system is an error here, not a SIGBUS later.
  if (const int code = posix_fallocate(made->lock_.fd(), 0, static_cast<off_t>(layout.bytes));
      code != 0) {
    errno = code;
    *error = explain(path, "no room for the page table");
    return Status::out_of_memory;
  }
  void* const base =
      mmap(nullptr, layout.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, made->lock_.fd(), 0);
  if (base == MAP_FAILED) {
    *error = explain(path, "cannot map the page table");
    return Status::out_of_memory;
  }
  madvise(base, layout.bytes, MADV_DONTFORK);
  made->base_ = base;
  made->mapped_by_ = getpid();
  made->bytes_ = layout.bytes;
  char* const bytes = static_cast<char*>(base);
  made->header_ = new (bytes) RowHeader;
  made->header_->facts = filled;
  made->header_->format = kFormat;
  made->fences_ = reinterpret_cast<std::atomic<std::uint64_t>*>(bytes + layout.fences);
  made->ring_ = reinterpret_cast<std::atomic<std::uint64_t>*>(bytes + layout.ring);
  made->states_ = reinterpret_cast<std::atomic<ExtentState>*>(bytes + layout.states);
  // Published last: a reader that sees the magic sees the rest.
  made->header_->magic.store(kMagic, std::memory_order_release);
  *row = std::move(made);
  return Status::ok;
}

Status Row::attach(const std::string& path, std::unique_ptr<Row>* row, std::string* error) {
  std::unique_ptr<Row> made(new Row);
  Status status = FileLock::open(path, &made->lock_);
  if (status != Status::ok) {
    *error = explain(path, "cannot open the page table");
    return status;
  }
  made->path_ = path;
  if (!made->lock_.held_elsewhere()) {
    *error = path + ": left behind by a process that is gone";
    return Status::not_found;
  }
  struct stat info{};
  if (fstat(made->lock_.fd(), &info) != 0 ||
      static_cast<std::size_t>(info.st_size) < sizeof(RowHeader)) {
    *error = path + ": not a page table";
    return Status::unsupported;
  }
  made->bytes_ = static_cast<std::size_t>(info.st_size);
  void* const base =
      mmap(nullptr, made->bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, made->lock_.fd(), 0);
  if (base == MAP_FAILED) {
    *error = explain(path, "cannot map the page table");
    return Status::out_of_memory;
  }
  madvise(base, made->bytes_, MADV_DONTFORK);
  made->base_ = base;
  made->mapped_by_ = getpid();
  char* const bytes = static_cast<char*>(base);
  made->header_ = reinterpret_cast<RowHeader*>(bytes);
  const bool known = made->header_->magic.load(std::memory_order_acquire) == kMagic &&
                     made->header_->format == kFormat;
  if (!known || layout_of(made->facts()).bytes != made->bytes_) {
    *error = path + ": written by another version of kvcached";
    return Status::unsupported;
  }
  const Layout layout = layout_of(made->facts());
  made->fences_ = reinterpret_cast<std::atomic<std::uint64_t>*>(bytes + layout.fences);
  made->ring_ = reinterpret_cast<std::atomic<std::uint64_t>*>(bytes + layout.ring);
  made->states_ = reinterpret_cast<std::atomic<ExtentState>*>(bytes + layout.states);
  *row = std::move(made);
  return Status::ok;
}

Row::~Row() {
  // A forked child did not inherit the mapping, and may have something else there by now.
  if (base_ != nullptr && mapped_by_ == getpid()) munmap(base_, bytes_);
  if (creator_ && lock_.is_current(path_)) ::unlink(path_.c_str());
}

bool Row::owner_alive() const noexcept { return creator_ || lock_.held_elsewhere(); }

void Row::push(Request request) noexcept {
  const std::uint64_t tail = header_->ring_tail.load(std::memory_order_relaxed);
  ring_[tail & (header_->facts.ring_slots - 1)].store(
      (std::uint64_t{request.count} << 32) | request.first, std::memory_order_relaxed);
  header_->ring_tail.store(tail + 1, std::memory_order_release);
  ring_doorbell();
}

void Row::ring_doorbell() noexcept {
  header_->doorbell.fetch_add(1, std::memory_order_seq_cst);
  // Woken once: it takes a while until it runs, and what is pushed meanwhile is seen all the same.
  if (header_->pager_sleeps.load(std::memory_order_seq_cst) != 0 &&
      header_->pager_sleeps.exchange(0, std::memory_order_seq_cst) != 0) {
    futex_wake(header_->doorbell);
  }
}

bool Row::pop(Request* request) noexcept {
  const std::uint64_t head = header_->ring_head.load(std::memory_order_relaxed);
  if (head == header_->ring_tail.load(std::memory_order_acquire)) return false;
  const std::uint64_t slot =
      ring_[head & (header_->facts.ring_slots - 1)].load(std::memory_order_relaxed);
  header_->ring_head.store(head + 1, std::memory_order_release);
  request->first = static_cast<std::uint32_t>(slot);
  request->count = static_cast<std::uint32_t>(slot >> 32);
  return true;
}

void Row::answer() noexcept {
  header_->answers.fetch_add(1, std::memory_order_seq_cst);
  if (header_->answer_awaited.load(std::memory_order_seq_cst) != 0) futex_wake(header_->answers);
}

}  // namespace kvcached
