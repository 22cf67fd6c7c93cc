#include "kvcached/ledger.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <pwd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <new>
#include <thread>

namespace kvcached {

namespace {

constexpr std::uint64_t kMagic = 0x00726764'6c64766b;  // "kvdldgr\0", little-endian
// The sizes are part of it, so that a change of the layout is never mistaken for damage.
constexpr std::uint64_t kFormat =
    (std::uint64_t{1} << 48) | (sizeof(LedgerHeader) << 24) | sizeof(LeaseSlot);
constexpr std::size_t kHeaderBytes = (sizeof(LedgerHeader) + 4095) / 4096 * 4096;
constexpr std::size_t kFileBytes = kHeaderBytes + kLedgerSlots * sizeof(LeaseSlot);
// Bytes of the file that are locked: one a slot, and one for joining.
constexpr std::uint32_t kJoinByte = kLedgerSlots;
constexpr std::chrono::seconds kJoinPatience{10};

std::string explain(const std::string& path, const char* what) {
  return path + ": " + what + ": " + std::strerror(errno);
}

std::string owner_of(const std::string& path) {
  struct stat info{};
  if (stat(path.c_str(), &info) != 0) return "somebody else";
  const passwd* const entry = getpwuid(info.st_uid);
  const std::string number = std::to_string(info.st_uid);
  return entry == nullptr ? "user " + number : std::string(entry->pw_name) + " (" + number + ")";
}

}  // namespace

Ledger::~Ledger() {
  // A forked child did not inherit the mapping, and may have something else there by now.
  if (base_ != nullptr && mapped_by_ == getpid()) munmap(base_, kFileBytes);
}

Status Ledger::lock_for_joining(std::string* error) {
  const auto deadline = std::chrono::steady_clock::now() + kJoinPatience;
  while (lock_.try_lock(kJoinByte) != Status::ok) {
    if (std::chrono::steady_clock::now() > deadline) {
      *error = path_ + ": a process that is joining or leaving has stopped; end it (fuser " +
               path_ + " shows who has the file open)";
      return Status::busy;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return Status::ok;
}

Status Ledger::map(std::string* error) {
  base_ = mmap(nullptr, kFileBytes, PROT_READ | PROT_WRITE, MAP_SHARED, lock_.fd(), 0);
  if (base_ == MAP_FAILED) {
    base_ = nullptr;
    *error = explain(path_, "cannot map the ledger");
    return Status::out_of_memory;
  }
  madvise(base_, kFileBytes, MADV_DONTFORK);
  mapped_by_ = getpid();
  char* const bytes = static_cast<char*>(base_);
  table_ = std::make_unique<LedgerTable>(reinterpret_cast<LedgerHeader*>(bytes),
                                         reinterpret_cast<LeaseSlot*>(bytes + kHeaderBytes));
  return Status::ok;
}

Status Ledger::open(const std::string& path, std::unique_ptr<Ledger>* ledger, std::string* error) {
  std::unique_ptr<Ledger> made(new Ledger);
  made->path_ = path;
  if (const Status status = FileLock::open(path, &made->lock_); status != Status::ok) {
    *error = errno == EACCES
                 ? path + ": belongs to " + owner_of(path) + "; share it with KVCACHED_SHM_GROUP"
                 : explain(path, "cannot open the ledger");
    return status;
  }
  struct stat info{};
  if (fstat(made->lock_.fd(), &info) != 0 || static_cast<std::size_t>(info.st_size) != kFileBytes) {
    *error = path +
             ": not a ledger of this version of kvcached, or damaged; end the engines on "
             "this device and remove it";
    return Status::unsupported;
  }
  if (const Status status = made->map(error); status != Status::ok) return status;
  const LedgerHeader& header = made->table_->header();
  if (header.magic.load(std::memory_order_acquire) != kMagic || header.format != kFormat ||
      header.granule_bytes == 0) {
    *error = path +
             ": not a ledger of this version of kvcached, or damaged; end the engines on "
             "this device and remove it";
    return Status::unsupported;
  }
  *ledger = std::move(made);
  return Status::ok;
}

Status Ledger::open_or_create(const std::string& path, const LedgerDevice& device, bool shared,
                              std::unique_ptr<Ledger>* ledger, std::string* error) {
  // Again where the last lease removed the file between our opening and our lock.
  for (int attempt = 0; attempt < 100; ++attempt) {
    std::unique_ptr<Ledger> made(new Ledger);
    made->path_ = path;
    Status status = FileLock::open_or_create(path, shared ? 0660 : 0600, &made->lock_);
    if (status != Status::ok) {
      *error = errno == EACCES
                   ? path + ": belongs to " + owner_of(path) + "; share it with KVCACHED_SHM_GROUP"
                   : explain(path, "cannot open the ledger");
      return status;
    }
    if (status = made->lock_for_joining(error); status != Status::ok) return status;
    if (!made->lock_.is_current(path)) continue;
    struct stat info{};
    if (fstat(made->lock_.fd(), &info) != 0) {
      *error = explain(path, "cannot look at the ledger");
      return Status::driver_error;
    }
    if (info.st_size == 0) {
      // Memory for the whole file now: a full file system is an error here, not a SIGBUS later.
      if (const int code = posix_fallocate(made->lock_.fd(), 0, kFileBytes); code != 0) {
        errno = code;
        *error = explain(path, "no room for the ledger");
        ::unlink(path.c_str());
        return Status::out_of_memory;
      }
      if (status = made->map(error); status != Status::ok) return status;
      auto* const header = new (made->base_) LedgerHeader;
      for (std::uint32_t index = 0; index < kLedgerSlots; ++index) {
        new (&made->table_->slot(index)) LeaseSlot;
      }
      header->format = kFormat;
      header->granule_bytes = device.granule_bytes;
      device.id.copy(header->device, sizeof header->device - 1);
      device.driver.copy(header->driver, sizeof header->driver - 1);
      header->magic.store(kMagic, std::memory_order_release);
      *ledger = std::move(made);
      return Status::ok;
    }
    // Its own description: the join lock stays with `made` until it is found good.
    std::unique_ptr<Ledger> found;
    if (status = open(path, &found, error); status != Status::ok) {
      // Somebody was killed while it made the file.
      const LedgerHeader* const header = found == nullptr ? nullptr : &found->table_->header();
      if (header == nullptr && made->map(error) == Status::ok &&
          static_cast<std::size_t>(info.st_size) == kFileBytes &&
          made->table_->header().magic.load(std::memory_order_acquire) == 0) {
        ::unlink(path.c_str());
        continue;
      }
      return status;
    }
    const LedgerHeader& header = found->table_->header();
    if (device.id != header.device || device.granule_bytes != header.granule_bytes) {
      *error = path + ": is the ledger of " + header.device + " with granules of " +
               std::to_string(header.granule_bytes) + " bytes, not of " + device.id;
      return Status::unsupported;
    }
    made->lock_.unlock(kJoinByte);
    if (status = found->lock_for_joining(error); status != Status::ok) return status;
    if (!found->lock_.is_current(path)) continue;
    *ledger = std::move(found);
    return Status::ok;
  }
  *error = path + ": the ledger disappears again and again";
  return Status::busy;
}

bool Ledger::alive(std::uint32_t slot) const noexcept {
  return table_->slot(slot).state.load(std::memory_order_acquire) == LeaseState::live &&
         lock_.held_elsewhere(slot);
}

void Ledger::clear(std::uint32_t index) {
  LeaseSlot& slot = table_->slot(index);
  // Holding less is never refused.
  (void)table_->resize(index, 0, monotonic_ns());
  slot.backed.store(0, std::memory_order_release);
  slot.moving.store(0, std::memory_order_release);
  slot.reserve.store(0, std::memory_order_release);
  slot.state.store(LeaseState::empty, std::memory_order_release);
  table_->changed();
}

std::uint32_t Ledger::sweep(std::uint32_t own) {
  std::uint32_t dead = 0;
  const std::uint32_t slots = table_->header().high_water.load(std::memory_order_acquire);
  for (std::uint32_t index = 0; index < slots; ++index) {
    if (index == own ||
        table_->slot(index).state.load(std::memory_order_acquire) != LeaseState::live) {
      continue;
    }
    // Winning the lock is proof that the owner is dead.
    if (lock_.held_elsewhere(index) || lock_.try_lock(index) != Status::ok) continue;
    if (table_->slot(index).state.load(std::memory_order_acquire) == LeaseState::live) {
      clear(index);
      table_->header().deaths.fetch_add(1, std::memory_order_relaxed);
      ++dead;
    }
    lock_.unlock(index);
  }
  return dead;
}

bool Ledger::remove_if_unused() {
  std::string error;
  if (lock_for_joining(&error) != Status::ok) return false;
  bool used = false;
  const std::uint32_t slots = table_->header().high_water.load(std::memory_order_acquire);
  for (std::uint32_t index = 0; index < slots; ++index) used = used || alive(index);
  const bool removed = !used && lock_.is_current(path_) && ::unlink(path_.c_str()) == 0;
  lock_.unlock(kJoinByte);
  return removed;
}

std::vector<std::string> remove_dead_ledgers(const std::string& directory) {
  std::vector<std::string> removed;
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(opendir(directory.c_str()), &closedir);
  if (entries == nullptr) return removed;
  while (const dirent* const entry = readdir(entries.get())) {
    const std::string_view name = entry->d_name;
    if (!name.ends_with(kLedgerSuffix)) continue;
    const std::string path = directory + "/" + entry->d_name;
    std::unique_ptr<Ledger> ledger;
    std::string error;
    if (Ledger::open(path, &ledger, &error) != Status::ok) continue;
    (void)ledger->sweep();
    if (ledger->remove_if_unused()) removed.push_back(path);
  }
  return removed;
}

}  // namespace kvcached
