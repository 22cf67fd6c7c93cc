#include "kvcached/backing.hpp"

#include <algorithm>
#include <utility>

namespace kvcached {

namespace {

// What a release leaves for the next commit. Small: it is held memory that serves nobody, and
// one growth step rarely takes more.
constexpr std::uint64_t kKeptBytes = std::uint64_t{64} << 20;

std::uint64_t granules_in(const std::vector<GranuleRun>& runs) {
  std::uint64_t count = 0;
  for (const GranuleRun& run : runs) count += run.count;
  return count;
}

constexpr std::uint64_t round_up(std::uint64_t bytes, std::uint64_t granule) {
  return (bytes + granule - 1) / granule * granule;
}

}  // namespace

Backing::Backing(Driver& driver, Geometry geometry, std::uint8_t fill)
    : driver_(driver),
      geometry_(std::move(geometry)),
      granule_(driver.granularity()),
      fill_(fill),
      cache_(driver, driver.handles_are_worth_keeping() ? kKeptBytes : 0) {}

Backing::~Backing() { reset(); }

Status Backing::reserve() {
  if (const Status status = geometry_.validate(); status != Status::ok) {
    return fail(status, "geometry");
  }
  if (!bases_.empty()) return Status::ok;
  for (const std::uint64_t bytes : geometry_.region_bytes) {
    const std::uint64_t rounded = round_up(bytes, granule_);
    void* base = nullptr;
    if (const Status status = driver_.reserve(rounded, &base); status != Status::ok) {
      fail(status, "reserve");
      for (std::size_t index = 0; index < bases_.size(); ++index) {
        (void)driver_.unreserve(bases_[index], reserved_[index]);
      }
      bases_.clear();
      reserved_.clear();
      granules_.clear();
      return status;
    }
    bases_.push_back(base);
    reserved_.push_back(rounded);
    granules_.emplace_back(rounded / granule_);
  }
  return Status::ok;
}

void Backing::reset() {
  begun_.clear();
  begun_status_ = Status::ok;
  for (auto& region : granules_) {
    for (Granule& granule : region) granule.users = 0;
  }
  for (std::uint32_t index = 0; index < mappings_.size(); ++index) {
    mappings_[index].users = 0;
    if (mappings_[index].count != 0) unmap(index);
  }
  cache_.trim(HandleCache::Clock::time_point::max());
  // Nothing can be done about a refusal here; the process's end returns the rest.
  if (mapped_bytes_ != 0) return;
  for (std::size_t index = 0; index < bases_.size(); ++index) {
    (void)driver_.unreserve(bases_[index], reserved_[index]);
  }
  bases_.clear();
  reserved_.clear();
  granules_.clear();
}

std::uint64_t Backing::bytes_to_commit(std::uint32_t first, std::uint32_t count) const {
  return granules_in(unmapped(geometry_.granules_of(first, count, granule_))) * granule_;
}

Status Backing::commit(std::uint32_t first, std::uint32_t count, std::uint64_t limit_bytes) {
  const Status status = begin_commit(first, count, limit_bytes);
  return status == Status::ok ? finish_commits() : status;
}

Status Backing::begin_commit(std::uint32_t first, std::uint32_t count, std::uint64_t limit_bytes) {
  ++commits_;
  const std::vector<GranuleRun> runs = geometry_.granules_of(first, count, granule_);
  const std::vector<GranuleRun> wanted = unmapped(runs);
  const std::uint64_t wanted_bytes = granules_in(wanted) * granule_;
  if (limit_bytes != 0 && held_bytes() + wanted_bytes > limit_bytes) {
    cache_.trim(HandleCache::Clock::time_point::max());
    if (held_bytes() + wanted_bytes > limit_bytes) {
      last_error_ = "limit of " + std::to_string(limit_bytes) + " bytes reached";
      return Status::out_of_memory;
    }
  }

  if (const Status status = reopen_left_over(runs); status != Status::ok) return status;

  const std::size_t unzeroed_before = unzeroed_.size();
  std::vector<std::uint32_t> fresh;
  fresh.reserve(wanted.size());
  Status status = Status::ok;
  for (const GranuleRun& run : wanted) {
    std::uint32_t mapping = kNone;
    status = map_fresh(run, &mapping);
    if (status != Status::ok) break;
    fresh.push_back(mapping);
  }
  // Where a neighbour shares a granule with us, our part of it holds what we left there.
  if (status == Status::ok && granules_in(wanted) != granules_in(runs)) {
    status = scrub_unused(geometry_.bytes_of(first, count));
  }
  if (status != Status::ok) {
    unzeroed_.resize(unzeroed_before);
    for (auto mapping = fresh.rbegin(); mapping != fresh.rend(); ++mapping) unmap(*mapping);
    // What is under way in a neighbour's granule is nobody's any more, and check_unwritten() may
    // look there next.
    if (begun_.empty() || fill_ != 0) (void)wait_for_scrubs();
    cache_.trim(HandleCache::Clock::time_point::max());
    return status;
  }
  for (const GranuleRun& run : runs) {
    for (std::uint64_t index = run.first; index < run.first + run.count; ++index) {
      Granule& granule = granules_[run.region][index];
      ++granule.users;
      ++mappings_[granule.mapping].users;
    }
  }
  begun_.push_back({first, count});
  return Status::ok;
}

Status Backing::finish_commits() {
  if (begun_.empty()) return Status::ok;
  (void)wait_for_scrubs();
  const std::vector<Unit> begun = std::exchange(begun_, {});
  const Status status = std::exchange(begun_status_, Status::ok);
  if (status != Status::ok) {
    for (auto unit = begun.rbegin(); unit != begun.rend(); ++unit) {
      release(unit->first, unit->count);
    }
    cache_.trim(HandleCache::Clock::time_point::max());
  }
  return status;
}

void Backing::release(std::uint32_t first, std::uint32_t count) {
  if (fill_ != 0) fill_released(geometry_.bytes_of(first, count));
  for (const GranuleRun& run : geometry_.granules_of(first, count, granule_)) {
    for (std::uint64_t index = run.first; index < run.first + run.count; ++index) {
      Granule& granule = granules_[run.region][index];
      --granule.users;
      const std::uint32_t mapping = granule.mapping;
      if (--mappings_[mapping].users == 0) unmap(mapping);
    }
  }
}

std::size_t Backing::trim(HandleCache::Clock::time_point older_than) {
  cache_.trim(older_than);
  return cache_.size();
}

void* Backing::address(std::uint32_t region, std::uint64_t granule) const noexcept {
  return static_cast<char*>(bases_[region]) + granule * granule_;
}

std::vector<GranuleRun> Backing::unmapped(const std::vector<GranuleRun>& runs) const {
  std::vector<GranuleRun> wanted;
  wanted.reserve(runs.size());
  for (const GranuleRun& run : runs) {
    bool open = false;
    for (std::uint64_t index = run.first; index < run.first + run.count; ++index) {
      if (granules_[run.region][index].mapping != kNone) {
        open = false;
      } else if (open) {
        ++wanted.back().count;
      } else {
        wanted.push_back({run.region, index, 1, run.exclusive});
        open = true;
      }
    }
  }
  return wanted;
}

Status Backing::map_fresh(const GranuleRun& run, std::uint32_t* mapping) {
  const std::uint64_t bytes = run.count * granule_;
  Handle handle;
  const bool reused = cache_.take(bytes, &handle);
  if (!reused) {
    Status status = driver_.create(bytes, &handle);
    if (status == Status::out_of_memory && cache_.size() != 0) {
      cache_.trim(HandleCache::Clock::time_point::max());
      status = driver_.create(bytes, &handle);
    }
    if (status != Status::ok) return fail(status, "create");
  }
  void* const where = address(run.region, run.first);
  if (const Status status = driver_.map(where, bytes, handle); status != Status::ok) {
    fail(status, "map");
    cache_.discard(handle, bytes);
    return status;
  }
  std::uint32_t index = 0;
  if (free_mappings_.empty()) {
    index = static_cast<std::uint32_t>(mappings_.size());
    mappings_.emplace_back();
  } else {
    index = free_mappings_.back();
    free_mappings_.pop_back();
  }
  mappings_[index] = {.handle = handle,
                      .region = run.region,
                      .first = run.first,
                      .count = run.count,
                      .made_by = commits_};
  for (std::uint64_t granule = run.first; granule < run.first + run.count; ++granule) {
    granules_[run.region][granule].mapping = index;
  }
  mapped_bytes_ += bytes;
  Status status = driver_.set_access(where, bytes);
  const char* step = "set_access";
  mappings_[index].accessible = status == Status::ok;
  if (status == Status::ok && (reused || fill_ != 0 || !driver_.fresh_memory_is_zero())) {
    status = start_scrub({run.region, run.first * granule_, (run.first + run.count) * granule_});
    step = "scrub";
    if (status == Status::ok && fill_ != 0) mappings_[index].unused = Contents::being_filled;
  }
  if (status != Status::ok) {
    fail(status, step);
    unmap(index);
    return status;
  }
  *mapping = index;
  return Status::ok;
}

bool Backing::unmap(std::uint32_t mapping) {
  const Mapping gone = mappings_[mapping];
  const std::uint64_t bytes = gone.count * granule_;
  if (driver_.unmap(address(gone.region, gone.first), bytes) != Status::ok) {
    last_error_ = "unmap: " + driver_.last_error();
    return false;
  }
  for (std::uint64_t granule = gone.first; granule < gone.first + gone.count; ++granule) {
    granules_[gone.region][granule].mapping = kNone;
  }
  mappings_[mapping] = {};
  free_mappings_.push_back(mapping);
  mapped_bytes_ -= bytes;
  cache_.put(gone.handle, bytes);
  return true;
}

// A mapping that could not be undone after its set_access() failed is still there, closed.
Status Backing::reopen_left_over(const std::vector<GranuleRun>& runs) {
  for (const GranuleRun& run : runs) {
    for (std::uint64_t index = run.first; index < run.first + run.count; ++index) {
      const std::uint32_t mapping = granules_[run.region][index].mapping;
      if (mapping == kNone || mappings_[mapping].accessible) continue;
      Mapping& closed = mappings_[mapping];
      const Status status =
          driver_.set_access(address(closed.region, closed.first), closed.count * granule_);
      if (status != Status::ok) return fail(status, "set_access");
      closed.accessible = true;
    }
  }
  return Status::ok;
}

Status Backing::scrub_unused(const std::vector<ByteRange>& bytes) {
  for (const ByteRange& range : bytes) {
    std::uint64_t begin = range.begin;
    while (begin < range.end) {
      const std::uint64_t granule = begin / granule_;
      const std::uint64_t end = std::min(range.end, (granule + 1) * granule_);
      const std::uint32_t mapping = granules_[range.region][granule].mapping;
      if (mappings_[mapping].made_by != commits_) {
        if (const Status status = check_unwritten(mappings_[mapping], range.region, begin, end);
            status != Status::ok) {
          return status;
        }
        if (const Status status = start_scrub({range.region, begin, end}); status != Status::ok) {
          return status;
        }
      }
      begin = end;
    }
  }
  return Status::ok;
}

// Nobody may have written here since fill_released(), or since the granule's first commit. What is
// still being filled cannot be looked at.
Status Backing::check_unwritten(const Mapping& mapping, std::uint32_t region, std::uint64_t begin,
                                std::uint64_t end) {
  if (mapping.unused != Contents::filled) return Status::ok;
  bool unwritten = true;
  const char* const where = static_cast<const char*>(bases_[region]) + begin;
  if (const Status status = driver_.reads_as(fill_, where, end - begin, &unwritten);
      status != Status::ok) {
    return fail(status, "reads_as");
  }
  if (!unwritten && violation_.empty()) {
    violation_ = "bytes " + std::to_string(begin) + " to " + std::to_string(end) + " of region " +
                 std::to_string(region) + " were written to while no extent used them";
  }
  return Status::ok;
}

void Backing::fill_released(const std::vector<ByteRange>& bytes) {
  for (const ByteRange& range : bytes) {
    if (start_scrub(range) == Status::ok) continue;
    for (std::uint64_t at = range.begin / granule_; at * granule_ < range.end; ++at) {
      mappings_[granules_[range.region][at].mapping].unused = Contents::unknown;
    }
  }
  // Units that are begun are waited for with it; finish_commits() hears of it.
  (void)wait_for_scrubs();
}

Status Backing::start_scrub(const ByteRange& range) {
  if (leaves_zeroing_) {
    unzeroed_.push_back(range);
    return Status::ok;
  }
  void* const where = static_cast<char*>(bases_[range.region]) + range.begin;
  if (const Status status = driver_.scrub(where, range.end - range.begin, fill_);
      status != Status::ok) {
    return fail(status, "scrub");
  }
  if (fill_ == 0) return Status::ok;
  for (std::uint64_t at = range.begin / granule_; at * granule_ < range.end; ++at) {
    scrubbing_.push_back(granules_[range.region][at].mapping);
  }
  return Status::ok;
}

Status Backing::wait_for_scrubs() {
  const Status status = driver_.wait_for_scrubs();
  if (status != Status::ok) {
    fail(status, "wait_for_scrubs");
    if (!begun_.empty()) begun_status_ = status;
  }
  for (const std::uint32_t mapping : scrubbing_) {
    Contents& unused = mappings_[mapping].unused;
    if (status != Status::ok) {
      unused = Contents::unknown;
    } else if (unused == Contents::being_filled) {
      unused = Contents::filled;
    }
  }
  scrubbing_.clear();
  return status;
}

Status Backing::fail(Status status, const char* what) {
  last_error_ = std::string(what) + ": " + driver_.last_error();
  return status;
}

}  // namespace kvcached
