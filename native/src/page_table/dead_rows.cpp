#include <dirent.h>
#include <unistd.h>

#include <memory>

#include "kvcached/page_table.hpp"

namespace kvcached {

std::vector<std::string> remove_dead_rows(const std::string& directory) {
  std::vector<std::string> removed;
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(opendir(directory.c_str()), &closedir);
  if (entries == nullptr) return removed;
  while (const dirent* const entry = readdir(entries.get())) {
    const std::string_view name = entry->d_name;
    if (!name.ends_with(kRowSuffix)) continue;
    const std::string path = directory + "/" + entry->d_name;
    FileLock file;
    if (FileLock::open(path, &file) != Status::ok) continue;
    // Winning the lock is proof that its owner is dead. A creator that has made the file but
    // not locked it yet may lose it here; it sees that its path names another file, or none.
    if (file.try_lock() != Status::ok || !file.is_current(path)) continue;
    if (::unlink(path.c_str()) == 0) removed.push_back(path);
  }
  return removed;
}

}  // namespace kvcached
