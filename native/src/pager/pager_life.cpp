// How a pager begins and ends; what it does in between is in pager.cpp.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "kvcached/futex.hpp"
#include "kvcached/pager.hpp"
#include "kvcached/sanity.hpp"

namespace kvcached {
namespace {

RowFacts describe(const Backing& backing, const Driver& driver, const PagerOptions& options) {
  RowFacts facts;
  const Geometry& geometry = backing.geometry();
  const std::size_t granule = driver.granularity();
  facts.rank = options.rank;
  facts.num_blocks = geometry.num_blocks;
  facts.blocks_per_extent = geometry.blocks_per_extent;
  facts.num_extents = geometry.num_extents();
  facts.pinned_extents = std::min(options.pinned_extents, facts.num_extents);
  facts.granule_bytes = granule;
  facts.extent_bytes = geometry.extent_bytes(granule);
  std::uint64_t part = granule;
  for (const GranuleRun& run : geometry.granules_of(0, 1, granule)) {
    part = std::max<std::uint64_t>(part, run.count * granule);
  }
  const std::uint64_t largest =
      options.max_handle_bytes != 0 ? options.max_handle_bytes : driver.largest_useful_handle();
  facts.max_unit_extents = static_cast<std::uint32_t>(std::max<std::uint64_t>(1, largest / part));
  for (const ByteRange& range : geometry.bytes_of(0, 1)) {
    facts.block_bytes += range.end - range.begin;
  }
  facts.block_bytes /= std::min(geometry.blocks_per_extent, geometry.num_blocks);
  for (const std::uint64_t bytes : geometry.region_bytes) facts.virtual_bytes += bytes;
  std::strncpy(facts.driver, driver.name(), sizeof facts.driver - 1);
  std::strncpy(facts.layout, options.layout.c_str(), sizeof facts.layout - 1);
  std::strncpy(facts.engine, options.engine.c_str(), sizeof facts.engine - 1);
  return facts;
}

}  // namespace

Pager::Pager(std::unique_ptr<Driver> driver, Geometry geometry, PagerOptions options)
    : driver_(std::move(driver)),
      options_(std::move(options)),
      backing_(*driver_, std::move(geometry), options_.sanity_check ? kSanityFill : 0) {}

Pager::~Pager() { stop(); }

Status Pager::start(std::string* error, bool threaded) {
  if (backing_.reserved()) {
    *error = "a pager starts once";
    return Status::invalid_argument;
  }
  if (const Status status = backing_.reserve(); status != Status::ok) {
    *error = "cannot reserve address space: " + backing_.last_error();
    return status;
  }
  RowFacts facts = describe(backing_, *driver_, options_);
  Status status = options_.ledger ? join(&facts, error) : Status::ok;
  if (status == Status::ok) status = commit_pinned(facts, error);
  if (status != Status::ok) {
    backing_.reset();
    lease_.reset();
    return status;
  }
  // A row is there for everybody from here on, and its pinned extents are taken for granted.
  if (status = Row::create(options_.path, facts, &row_, error); status != Status::ok) {
    backing_.reset();
    lease_.reset();
    return status;
  }
  row_->header().limit_bytes = options_.limit_bytes;
  // Not before the pinned ones are there: they are taken for granted ahead of any step.
  if (options_.zero_in_steps && !options_.sanity_check) backing_.leave_zeroing();
  set_states({0, facts.pinned_extents}, ExtentState::committed);
  publish();
  started_by_ = getpid();
  if (threaded) thread_ = std::thread([this] { run(); });
  return Status::ok;
}

Status Pager::join(RowFacts* facts, std::string* error) {
  PagerLedger& ledger = *options_.ledger;
  LeaseTerms& terms = ledger.terms;
  terms.row = options_.path;
  terms.rank = options_.rank;
  terms.virtual_bytes = facts->virtual_bytes;
  terms.extent_bytes = facts->extent_bytes;
  MemoryInfo device;
  if (const Status status = driver_->memory_info(&device); status != Status::ok) {
    *error = "cannot ask the device for its memory: " + driver_->last_error();
    return status;
  }
  const LedgerDevice id{driver_->device_id(), driver_->name(), driver_->granularity()};
  if (const Status status =
          Lease::join(ledger.path, id, ledger.shared, terms, device, &lease_, error);
      status != Status::ok) {
    return status;
  }
  ledger.path.copy(facts->ledger, sizeof facts->ledger - 1);
  facts->lease_slot = lease_->slot();
  return Status::ok;
}

Status Pager::commit_pinned(const RowFacts& facts, std::string* error) {
  const auto deadline =
      Clock::now() + (options_.ledger ? options_.ledger->patience : std::chrono::milliseconds(0));
  for (std::uint32_t extent = 0; extent < facts.pinned_extents; ++extent) {
    LedgerHeader* const header = lease_ == nullptr ? nullptr : &lease_->ledger().table().header();
    // Read before the attempt, so that a change behind a refusal ends the sleep.
    std::uint32_t seen = header == nullptr ? 0 : header->epoch.load(std::memory_order_acquire);
    Status status = commit_accounted({extent, 1}, true);
    // Neighbours that hold more than their part give back what is asked for here.
    while (status == Status::out_of_memory && Clock::now() < deadline) {
      header->epoch_awaited.fetch_add(1, std::memory_order_seq_cst);
      futex_wait(header->epoch, seen, kSweep);
      header->epoch_awaited.fetch_sub(1, std::memory_order_seq_cst);
      look_after_lease(Clock::now());
      seen = header->epoch.load(std::memory_order_acquire);
      status = commit_accounted({extent, 1}, true);
    }
    if (status != Status::ok) {
      *error = "not enough memory for the " + std::to_string(facts.pinned_extents) +
               " extents that are always committed (" + std::to_string(facts.extent_bytes) +
               " bytes each): " + refusal_;
      return status;
    }
  }
  return Status::ok;
}

void Pager::stop() {
  if (started_by_ != 0 && started_by_ != getpid()) {
    // A forked child has neither the thread nor the row.
    if (thread_.joinable()) thread_.detach();
    return;
  }
  stopping_ = true;
  if (row_ != nullptr) row_->ring_doorbell();
  if (thread_.joinable()) thread_.join();
  row_.reset();
  // What is still mapped is a stranger's from here on: the device says that it is not free.
  if (lease_ != nullptr) lease_->leave();
  lease_.reset();
}

}  // namespace kvcached
