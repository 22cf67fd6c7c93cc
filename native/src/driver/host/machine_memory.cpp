#include "machine_memory.hpp"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <optional>
#include <string_view>

namespace kvcached {
namespace {

constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();
// Version 1 writes "no limit" as the largest multiple of a page below 2^63.
constexpr std::uint64_t kVersion1NoLimit = std::uint64_t{1} << 62;
// A group's reclaimable cache is read only where it could matter: memory.stat costs more than
// the other files together.
constexpr std::uint64_t kPlenty = std::uint64_t{4} << 30;

std::optional<std::uint64_t> parse(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{}) return std::nullopt;
  return value;
}

// A file of one number. Nothing for "max" and for a file that is not there.
std::optional<std::uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  if (!std::getline(file, text)) return std::nullopt;
  return parse(text);
}

// The number behind `key` in a file of "key number" lines.
std::optional<std::uint64_t> read_field(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string text; std::getline(file, text);) {
    const std::string_view line = text;
    if (line.starts_with(key)) return parse(line.substr(key.size()));
  }
  return std::nullopt;
}

// Clean file pages that the kernel drops before it kills: all inactive ones, half of the active
// ones (the kernel's own MemAvailable halves its page cache in the same way).
std::uint64_t reclaimable(const std::string& stat, bool version_2) {
  const char* const inactive = version_2 ? "inactive_file " : "total_inactive_file ";
  const char* const active = version_2 ? "active_file " : "total_active_file ";
  return read_field(stat, inactive).value_or(0) + read_field(stat, active).value_or(0) / 2;
}

bool has_memory_controller(std::string_view controllers) {
  for (std::size_t start = 0; start <= controllers.size();) {
    const std::size_t comma = std::min(controllers.find(',', start), controllers.size());
    if (controllers.substr(start, comma - start) == "memory") return true;
    start = comma + 1;
  }
  return false;
}

}  // namespace

MachineMemory::MachineMemory(std::string proc, std::string cgroups) : meminfo_(proc + "/meminfo") {
  std::ifstream file(proc + "/self/cgroup");
  for (std::string text; std::getline(file, text);) {
    // "hierarchy:controllers:path"; version 2 has no controllers.
    const std::size_t first = text.find(':');
    const std::size_t second = text.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = text.substr(first + 1, second - first - 1);
    const bool version_2 = controllers.empty();
    if (!version_2 && !has_memory_controller(controllers)) continue;
    const std::string base = version_2 ? cgroups : cgroups + "/memory";
    const char* const usage = version_2 ? "/memory.current" : "/memory.usage_in_bytes";
    // In a container the path may be the host's: only the mount's root, the container's own
    // group, is then there to read.
    for (std::string path = text.substr(second + 1);; path.erase(path.rfind('/'))) {
      while (!path.empty() && path.back() == '/') path.pop_back();
      if (std::ifstream(base + path + usage).good()) levels_.push_back({base + path, version_2});
      if (path.rfind('/') == std::string::npos) break;
    }
  }
}

std::uint64_t MachineMemory::limit_of(const Level& level) const {
  const char* const file = level.version_2 ? "/memory.max" : "/memory.limit_in_bytes";
  const std::uint64_t limit = read_number(level.directory + file).value_or(kNoLimit);
  return limit >= kVersion1NoLimit ? kNoLimit : limit;
}

std::size_t MachineMemory::total() const {
  std::uint64_t bytes = read_field(meminfo_, "MemTotal:").value_or(0) * 1024;
  for (const Level& level : levels_) bytes = std::min(bytes, limit_of(level));
  return bytes;
}

std::size_t MachineMemory::available() const {
  const auto kibibytes = read_field(meminfo_, "MemAvailable:");
  std::uint64_t bytes = kibibytes ? *kibibytes * 1024 : kNoLimit;
  for (const Level& level : levels_) {
    const std::uint64_t limit = limit_of(level);
    if (limit == kNoLimit) continue;
    const char* const file = level.version_2 ? "/memory.current" : "/memory.usage_in_bytes";
    const std::uint64_t used = read_number(level.directory + file).value_or(0);
    std::uint64_t room = limit > used ? limit - used : 0;
    if (room < kPlenty) {
      // The limit covers usage with the cache in it.
      room = std::min(limit, room + reclaimable(level.directory + "/memory.stat", level.version_2));
    }
    bytes = std::min(bytes, room);
  }
  return bytes;
}

}  // namespace kvcached
