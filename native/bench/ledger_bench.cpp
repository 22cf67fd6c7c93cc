// Times single operations of a ledger, each with the clock around it, and writes the nanoseconds
// of every operation to standard output: for each case a line "NAME COUNT", and the numbers as
// 32-bit words. benchmarks/ledger.py runs it and reads them.

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "kvcached/ledger.hpp"

namespace kvcached {
namespace {

constexpr std::uint64_t kGranule = std::uint64_t{2} << 20;
constexpr std::uint64_t kTotal = std::uint64_t{80} << 30;
constexpr int kTenants = 16;

using Nanoseconds = std::vector<std::uint32_t>;

std::uint32_t since(std::uint64_t began) {
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(monotonic_ns() - began, std::numeric_limits<std::uint32_t>::max()));
}

std::unique_ptr<Lease> join(const std::string& path, const std::string& instance) {
  LeaseTerms terms;
  terms.group = "bench";
  terms.instance = instance;
  std::unique_ptr<Lease> lease;
  std::string error;
  if (Lease::join(path, {"bench", "sim", kGranule}, false, terms, {kTotal, kTotal}, &lease,
                  &error) != Status::ok) {
    std::fprintf(stderr, "%s\n", error.c_str());
    std::exit(1);
  }
  return lease;
}

// Tenants that hold their part and would have more: who grows is judged.
std::vector<std::unique_ptr<Lease>> neighbours(const std::string& path, int count, bool contended) {
  std::vector<std::unique_ptr<Lease>> leases;
  for (int index = 0; index < count; ++index) {
    leases.push_back(join(path, "neighbour " + std::to_string(index)));
    (void)leases.back()->resize(kTotal / 32);
  }
  if (contended && !leases.empty()) leases.front()->ledger().table().contend(monotonic_ns());
  return leases;
}

// Grows and shrinks by one granule, as a pager does; two operations a turn.
Nanoseconds resizing(Lease& lease, std::size_t count) {
  LedgerTable& table = lease.ledger().table();
  const std::uint32_t slot = lease.slot();
  Nanoseconds times(count);
  for (std::size_t turn = 0; turn < count; ++turn) {
    const std::uint64_t began = monotonic_ns();
    (void)table.resize(slot, turn % 2 == 0 ? 9 : 8, began);
    times[turn] = since(began);
  }
  return times;
}

Nanoseconds ruling(Lease& lease, std::size_t count) {
  LedgerTable& table = lease.ledger().table();
  Nanoseconds times(count);
  for (std::uint32_t& time : times) {
    const std::uint64_t began = monotonic_ns();
    (void)table.ruling(lease.slot(), began);
    // What it clears while nobody wants anything would make the next one another case.
    time = since(began);
    table.header().contended.store(1, std::memory_order_relaxed);
  }
  return times;
}

Nanoseconds clock_alone(std::size_t count) {
  Nanoseconds times(count);
  for (std::uint32_t& time : times) time = since(monotonic_ns());
  return times;
}

void write_out(const std::string& name, const Nanoseconds& times) {
  if (times.empty()) return;
  std::printf("%s %zu\n", name.c_str(), times.size());
  std::fwrite(times.data(), sizeof times[0], times.size(), stdout);
}

// What resizing() measured: growth, which may ask the policy, and holding less, which never does.
void write_both(const std::string& name, const Nanoseconds& times) {
  Nanoseconds grants;
  Nanoseconds releases;
  for (std::size_t turn = 0; turn < times.size(); ++turn) {
    (turn % 2 == 0 ? grants : releases).push_back(times[turn]);
  }
  write_out("grant, " + name, grants);
  write_out("release, " + name, releases);
}

// The same operations in several processes at once. Each waits until all are there.
void together(const std::string& name, const std::string& path, int processes, bool contended,
              std::size_t count) {
  const auto others = neighbours(path, contended ? kTenants - processes : 0, contended);
  const std::size_t bytes = 64 + static_cast<std::size_t>(processes) * count * 4;
  void* const shared =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) std::exit(1);
  auto* const ready = new (shared) std::atomic<int>(0);
  auto* const results = reinterpret_cast<std::uint32_t*>(static_cast<char*>(shared) + 64);
  std::vector<pid_t> children;
  for (int process = 0; process < processes; ++process) {
    const pid_t child = fork();
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    std::unique_ptr<Lease> lease = join(path, "process " + std::to_string(process));
    ready->fetch_add(1);
    while (ready->load() < processes) usleep(100);
    const Nanoseconds times = resizing(*lease, count);
    std::copy(times.begin(), times.end(), results + static_cast<std::size_t>(process) * count);
    lease.reset();
    _exit(0);
  }
  bool all = true;
  for (const pid_t child : children) {
    int status = -1;
    waitpid(child, &status, 0);
    all = all && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  if (!all) std::exit(1);
  const auto total = static_cast<std::size_t>(processes) * count;
  write_both(name, Nanoseconds(results, results + total));
  munmap(shared, bytes);
}

void alone(const std::string& name, const std::string& path, bool contended, std::size_t count) {
  const auto others = neighbours(path, contended ? kTenants - 1 : 0, contended);
  const std::unique_ptr<Lease> lease = join(path, "measured");
  (void)resizing(*lease, count / 10);  // everything warm
  write_both(name, resizing(*lease, count));
  if (contended) write_out("ruling, " + name, ruling(*lease, count / 2));
}

}  // namespace
}  // namespace kvcached

int main(int argc, char** argv) {
  using namespace kvcached;
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s LEDGER-FILE OPERATIONS PROCESSES\n", argv[0]);
    return 2;
  }
  const std::string path = argv[1];
  const std::size_t count = std::strtoull(argv[2], nullptr, 10);
  const int processes = std::atoi(argv[3]);
  if (count < 100 || count % 2 != 0 || processes < 1 || processes > kTenants) {
    std::fprintf(stderr, "an even number of operations, 100 at least, and 1 to %d processes\n",
                 kTenants);
    return 2;
  }
  write_out("clock", clock_alone(count));
  const std::string those = ", " + std::to_string(processes) + " processes";
  alone("plain", path, false, count);
  alone("contended", path, true, count);
  together("plain" + those, path, processes, false, count);
  together("contended" + those, path, processes, true, count);
  return 0;
}
