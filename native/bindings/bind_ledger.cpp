#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "kvcached/futex.hpp"
#include "kvcached/ledger.hpp"

namespace nb = nanobind;

namespace kvcached::bindings {

namespace {

constexpr double kNanosecond = 1e-9;

nb::object limit_or_none(std::uint64_t bytes) { return bytes == 0 ? nb::none() : nb::cast(bytes); }

double seconds_since(std::uint64_t then_ns, std::uint64_t now_ns) {
  return now_ns > then_ns ? static_cast<double>(now_ns - then_ns) * kNanosecond : 0.0;
}

nb::dict describe_lease(Ledger& ledger, std::uint32_t index, const Tenant& tenant,
                        const Ruling& ruling, std::uint64_t now_ns) {
  LedgerTable& table = ledger.table();
  const LeaseSlot& slot = table.slot(index);
  const std::uint64_t granule = table.header().granule_bytes;
  nb::dict out;
  out["slot"] = index;
  out["group"] = static_cast<const char*>(slot.facts.group);
  out["instance"] = static_cast<const char*>(slot.facts.instance);
  out["engine"] = static_cast<const char*>(slot.facts.engine);
  out["row"] = static_cast<const char*>(slot.facts.row);
  out["rank"] = slot.facts.rank;
  out["pid"] = slot.facts.pid;
  out["user"] = slot.facts.user;
  out["alive"] = ledger.alive(index);
  out["joined_seconds_ago"] = seconds_since(slot.facts.joined_ns, now_ns);
  out["seen_seconds_ago"] = seconds_since(slot.seen_ns.load(), now_ns);
  out["virtual_bytes"] = slot.facts.virtual_bytes;
  out["extent_bytes"] = slot.facts.extent_bytes;
  out["held_bytes"] = tenant.held * granule;
  out["backed_bytes"] = slot.backed.load() * granule;
  out["live_bytes"] = tenant.live * granule;
  out["cached_bytes"] = slot.cached.load() * granule;
  out["slack_bytes"] = slot.slack.load() * granule;
  out["leaving_bytes"] = tenant.leaving * granule;
  out["reserve_bytes"] = slot.reserve.load() * granule;
  out["keep_bytes"] = tenant.keep * granule;
  out["wanted_bytes"] = tenant.wanted * granule;
  out["demand_bytes"] = tenant.demand * granule;
  out["limit_bytes"] = limit_or_none(slot.limit_bytes.load());
  out["group_limit_bytes"] = limit_or_none(slot.group_limit_bytes.load());
  out["floor_bytes"] = tenant.floor * granule;
  out["floor_is_default"] = slot.floor_bytes.load() == LeaseSlot::kDefaultFloor;
  out["weight"] = slot.weight_thousandths.load() / 1000.0;
  out["entitlement_bytes"] = ruling.entitlement * granule;
  out["promised_bytes"] = ruling.promised * granule;
  out["pressure_bytes"] = (ruling.soft_pressure + ruling.hard_pressure) * granule;
  out["trim_bytes"] = slot.trim.load() * granule;
  out["grants"] = slot.grants.load();
  out["denials"] = slot.denials.load();
  out["reclaimed_bytes"] = slot.reclaimed.load() * granule;
  out["orders"] = slot.orders.load();
  out["orders_done"] = slot.orders_done.load();
  out["orders_done_seconds_ago"] = seconds_since(slot.orders_done_ns.load(), now_ns);
  return out;
}

nb::dict describe(Ledger& ledger) {
  LedgerTable& table = ledger.table();
  const LedgerHeader& header = table.header();
  const std::uint64_t granule = header.granule_bytes;
  const std::uint64_t now = monotonic_ns();
  std::vector<Tenant> tenants;
  std::vector<Ruling> rulings;
  table.judge_all(now, &tenants, &rulings);
  nb::dict out;
  out["path"] = ledger.path();
  out["device"] = static_cast<const char*>(header.device);
  out["driver"] = static_cast<const char*>(header.driver);
  out["policy"] = static_cast<const char*>(header.policy);
  out["granule_bytes"] = granule;
  out["capacity_bytes"] = header.capacity.load() * granule;
  out["used_bytes"] = table.used() * granule;
  out["device_total_bytes"] = header.device_total.load();
  out["device_free_bytes"] = header.device_free.load();
  out["sampled_seconds_ago"] = seconds_since(header.sampled_ns.load(), now);
  out["contended"] = header.contended.load() != 0;
  out["deaths"] = header.deaths.load();
  nb::list leases;
  for (std::uint32_t index = 0; index < tenants.size(); ++index) {
    if (table.slot(index).state.load() != LeaseState::live) continue;
    leases.append(describe_lease(ledger, index, tenants[index], rulings[index], now));
  }
  out["leases"] = leases;
  return out;
}

LeaseSlot& slot_of(Ledger& ledger, std::uint32_t slot) {
  if (slot >= kLedgerSlots || ledger.table().slot(slot).state.load() != LeaseState::live) {
    throw Error(Status::not_found, ledger.path() + ": no lease in slot " + std::to_string(slot));
  }
  return ledger.table().slot(slot);
}

// Tells the owner, and everybody whose grant a change may allow. Returns the order's number.
std::uint32_t order(Ledger& ledger, std::uint32_t slot) {
  const std::uint32_t number = ledger.table().slot(slot).orders.fetch_add(1) + 1;
  ledger.table().ring(slot);
  ledger.table().changed();
  return number;
}

template <typename Change>
std::uint32_t ordered(Ledger& ledger, std::uint32_t slot, Change change) {
  change(slot_of(ledger, slot));
  return order(ledger, slot);
}

bool wait_done(Ledger& ledger, std::uint32_t slot, std::uint32_t number, double seconds) {
  const LeaseSlot& found = ledger.table().slot(slot);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (;;) {
    if (static_cast<std::int32_t>(found.orders_done.load() - number) >= 0) return true;
    if (std::chrono::steady_clock::now() >= deadline) return false;
    futex_wait(found.orders_done, found.orders_done.load(), std::chrono::milliseconds(5));
  }
}

}  // namespace

void bind_ledger(nb::module_& module) {
  nb::class_<Ledger>(module, "Ledger", "One device's account of which instance holds how much.")
      .def_static(
          "open",
          [](const std::string& path) {
            std::unique_ptr<Ledger> ledger;
            std::string error;
            check(Ledger::open(path, &ledger, &error), error);
            return ledger.release();
          },
          nb::arg("path"), nb::rv_policy::take_ownership, "Opens an existing ledger's file.")
      .def_prop_ro("path", &Ledger::path)
      .def("describe", &describe, "The device and its leases, by name; sizes in bytes.")
      .def(
          "snapshot",
          [](Ledger& ledger) {
            const std::uint64_t granule = ledger.table().header().granule_bytes;
            std::vector<std::uint64_t> held;
            const std::uint64_t used = ledger.table().snapshot(&held);
            for (std::uint64_t& bytes : held) bytes *= granule;
            return std::make_tuple(used * granule, ledger.table().header().capacity * granule,
                                   held);
          },
          "(used, capacity, held by slot) of one moment, in bytes.")
      .def(
          "sweep", [](Ledger& ledger) { return ledger.sweep(); },
          "Gives back what dead owners held; returns how many there were.")
      .def("remove_if_unused", &Ledger::remove_if_unused,
           "Removes the file where no lease lives; False where one does.")
      .def(
          "set_limit",
          [](Ledger& ledger, std::uint32_t slot, std::uint64_t bytes) {
            return ordered(ledger, slot, [&](LeaseSlot& found) { found.limit_bytes = bytes; });
          },
          nb::arg("slot"), nb::arg("bytes"),
          "Most bytes a lease may hold, 0 for no bound. Returns the order's number.")
      .def(
          "set_group_limit",
          [](Ledger& ledger, std::uint32_t slot, std::uint64_t bytes) {
            return ordered(ledger, slot,
                           [&](LeaseSlot& found) { found.group_limit_bytes = bytes; });
          },
          nb::arg("slot"), nb::arg("bytes"),
          "Most bytes a lease's group may hold together; to be set on each member.")
      .def(
          "set_floor",
          [](Ledger& ledger, std::uint32_t slot, std::optional<std::uint64_t> bytes) {
            return ordered(ledger, slot, [&](LeaseSlot& found) {
              found.floor_bytes = bytes.value_or(LeaseSlot::kDefaultFloor);
            });
          },
          nb::arg("slot"), nb::arg("bytes").none(), "Guaranteed bytes; None for the default.")
      .def(
          "set_weight",
          [](Ledger& ledger, std::uint32_t slot, double weight) {
            return ordered(ledger, slot, [&](LeaseSlot& found) {
              found.weight_thousandths = static_cast<std::uint32_t>(weight * 1000);
            });
          },
          nb::arg("slot"), nb::arg("weight"), "Share against other leases' weights.")
      .def(
          "trim",
          [](Ledger& ledger, std::uint32_t slot, std::uint64_t bytes) {
            const std::uint64_t granule = ledger.table().header().granule_bytes;
            return ordered(ledger, slot,
                           [&](LeaseSlot& found) { found.trim = (bytes + granule - 1) / granule; });
          },
          nb::arg("slot"), nb::arg("bytes"),
          "Asks a lease to give back slack and cached prefixes of so many bytes.")
      .def(
          "wait_done",
          [](Ledger& ledger, std::uint32_t slot, std::uint32_t number, double seconds) {
            (void)slot_of(ledger, slot);
            const nb::gil_scoped_release release;
            return wait_done(ledger, slot, number, seconds);
          },
          nb::arg("slot"), nb::arg("number"), nb::arg("seconds"),
          "Waits until a lease's owner has carried out an order.")
      .def(
          "set_policy",
          [](Ledger& ledger, const std::string& name) {
            LedgerHeader& header = ledger.table().header();
            name.copy(header.policy, sizeof header.policy - 1);
            header.policy[std::min(name.size(), sizeof header.policy - 1)] = '\0';
          },
          nb::arg("name"), "Names the policy that sets entitlements; '' for the built-in one.")
      .def(
          "set_entitlement",
          [](Ledger& ledger, std::uint32_t slot, std::uint64_t bytes) {
            slot_of(ledger, slot).entitlement = bytes / ledger.table().header().granule_bytes;
          },
          nb::arg("slot"), nb::arg("bytes"), "A lease's entitlement under a named policy.");
  nb::class_<Lease>(module, "Lease", "A place in a ledger, for as long as the object lives.")
      .def_static(
          "join",
          [](const std::string& path, const std::string& device, const std::string& driver,
             std::uint64_t granule_bytes, std::uint64_t device_free, std::uint64_t device_total,
             LeaseTerms& terms, bool shared) {
            std::unique_ptr<Lease> lease;
            std::string error;
            check(Lease::join(path, {device, driver, granule_bytes}, shared, terms,
                              {device_free, device_total}, &lease, &error),
                  error);
            return lease.release();
          },
          nb::arg("path"), nb::arg("device"), nb::arg("driver"), nb::arg("granule_bytes"),
          nb::arg("device_free"), nb::arg("device_total"), nb::arg("terms"),
          nb::arg("shared") = false, nb::rv_policy::take_ownership,
          "Joins a device's ledger, made where there is none.")
      .def_prop_ro("slot", &Lease::slot)
      .def(
          "resize",
          [](Lease& lease, std::uint64_t bytes) {
            switch (lease.resize(bytes)) {
              case Grant::granted:
                return "granted";
              case Grant::no_capacity:
                return "no capacity";
              case Grant::over_limit:
                return "over limit";
              case Grant::promised:
                return "promised";
            }
            return "unknown";
          },
          nb::arg("bytes"), "Asks for so many bytes in all; says what came of it.")
      .def("leave", &Lease::leave, "Holds nothing from here on.");
  nb::class_<LeaseTerms>(module, "LeaseTerms", "What the owner of a lease asks for.")
      .def(
          "__init__",
          [](LeaseTerms* self, std::string group, std::string instance, std::string engine,
             std::string row, std::uint32_t rank, std::uint64_t limit_bytes,
             std::optional<std::uint64_t> floor_bytes, double weight, double utilisation,
             std::uint64_t device_limit_bytes, std::uint64_t virtual_bytes,
             std::uint64_t extent_bytes, std::uint64_t longest_bytes) {
            new (self) LeaseTerms{std::move(group),
                                  std::move(instance),
                                  std::move(engine),
                                  std::move(row),
                                  rank,
                                  limit_bytes,
                                  floor_bytes,
                                  weight,
                                  utilisation,
                                  device_limit_bytes,
                                  virtual_bytes,
                                  extent_bytes,
                                  longest_bytes};
          },
          nb::arg("group"), nb::arg("instance"), nb::arg("engine") = "", nb::arg("row") = "",
          nb::arg("rank") = 0, nb::arg("limit_bytes") = 0, nb::arg("floor_bytes") = nb::none(),
          nb::arg("weight") = 1.0, nb::arg("utilisation") = 1.0, nb::arg("device_limit_bytes") = 0,
          nb::arg("virtual_bytes") = 0, nb::arg("extent_bytes") = 0, nb::arg("longest_bytes") = 0);
  module.def("remove_dead_ledgers", &remove_dead_ledgers, nb::arg("directory"),
             "Gives back what dead owners held, and removes ledgers that nobody uses; returns "
             "their paths.");
}

}  // namespace kvcached::bindings
