"""The native core of kvcached: drivers, page table, pager and pool.

Written by hand; tests/test_stub.py holds it against the module. Sizes are bytes.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import Final, Generic, Literal, Protocol, TypedDict, TypeVar, type_check_only

from typing_extensions import CapsuleType

@type_check_only
class _Block(Protocol):
    """An engine's block, as a queue sees it."""

    @property
    def block_id(self) -> int: ...

@type_check_only
class _Ids(Protocol):
    """A contiguous one-dimensional array of 64-bit integers in host memory: a tensor, say."""

    def __dlpack__(self, *, stream: None = None) -> CapsuleType:
        """DLPack's capsule."""
    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's (device type, device)."""

_BlockT = TypeVar("_BlockT", bound=_Block)

class Error(RuntimeError):
    """An operation that was refused, in one line."""

class Driver:
    """The virtual-memory calls of one device.

    Addresses are integers. A refused call raises Error and changes nothing. A pager takes its
    driver over; every use after that raises TypeError.
    """

    @property
    def name(self) -> str:
        """One of "cuda", "host" and "sim"."""
    @property
    def granularity(self) -> int:
        """The smallest physical unit."""
    @property
    def device_id(self) -> str:
        """What tells the device from every other: "GPU-" and its UUID, or "host"."""
    @property
    def max_mappings(self) -> int:
        """How many mappings a process may hold; 0: no bound."""
    def probe(self) -> None:
        """Raise Error where the device cannot be used. To be called first."""
    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes of the device."""
    def reserve(self, bytes: int) -> int:
        """Take address space without memory under it; return its address."""
    def unreserve(self, address: int, bytes: int) -> None:
        """Return address space."""
    def create(self, bytes: int) -> int:
        """Take physical memory; return its handle."""
    def destroy(self, handle: int, bytes: int) -> None:
        """Give physical memory back."""
    def map(self, address: int, bytes: int, handle: int) -> None:
        """Put a handle at an address."""
    def unmap(self, address: int, bytes: int) -> None:
        """Take a handle out of the address space."""
    def set_access(self, address: int, bytes: int) -> None:
        """Let the device read and write."""

def host_driver(budget_bytes: int = 0) -> Driver:
    """This machine's memory, at most `budget_bytes` of it (0: what the machine has)."""

def cuda_driver(ordinal: int = 0) -> Driver:
    """A CUDA device's memory, through the driver found at run time."""

def sim_driver(capacity_bytes: int, granularity: int = 2097152) -> Driver:
    """A device that exists on paper, for simulations: touching its memory faults."""

class DriverCalls:
    """A device's virtual-memory calls in native loops that time them, for benchmarks.

    Raises Error at the first refusal, with memory left behind.
    """

    @staticmethod
    def of(driver: Driver) -> DriverCalls:
        """A driver's calls, with all that it adds. Takes the driver over."""
    @staticmethod
    def bare_cuda(ordinal: int = 0) -> DriverCalls:
        """The functions of the CUDA driver alone."""
    def time_extents(self, part_bytes: int, parts: int, extents: int) -> list[tuple[int, int]]:
        """Commit and release extents of `parts` handles each, at the addresses and in the order of
        a pager.

        Returns (wall, processor) nanoseconds of the thread for all of them together, for create +
        map + set_access, for unmap and for destroy.
        """
    def time_sizes(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """The same for handles of these sizes, side by side."""
    def time_each(self, bytes: int, count: int, live: int) -> dict[str, list[int]]:
        """Nanoseconds of each of `count` calls of a kind, by its name, on handles of one size,
        `live` of them at a time."""

class Geometry:
    """How block ids become bytes on one rank."""

    def __init__(
        self,
        num_blocks: int,
        region_bytes: Sequence[int],
        spans: Sequence[tuple[int, int, int, int]],
        blocks_per_extent: int = 1,
    ) -> None:
        """Each span is (region, offset, stride, bytes): block b takes `bytes` bytes of its
        region from offset + b * stride. Raises Error where a span leaves its region."""
    @property
    def num_blocks(self) -> int:
        """Blocks, of all extents."""
    @property
    def blocks_per_extent(self) -> int:
        """Blocks of one extent; the last extent may have fewer."""
    @property
    def num_extents(self) -> int:
        """Extents, the last one short where blocks_per_extent does not divide num_blocks."""
    def extent_bytes(self, granule: int) -> int:
        """Physical bytes of one extent."""
    def bytes_of(self, first: int, count: int) -> list[tuple[int, int, int]]:
        """(region, begin, end) of a run of extents."""

def choose_blocks_per_extent(
    geometry: Geometry, granule: int, min_part_bytes: int = 0, max_mappings: int = 0
) -> int:
    """The smallest extent whose parts end on granules, within the bounds given."""

class Pager:
    """The native thread that makes one rank's row of the page table true."""

    max_launches: Final[int]
    """Launches remembered; an event may be recorded again after that many steps."""

    def __init__(
        self,
        driver: Driver,
        geometry: Geometry,
        path: str,
        engine: str = "",
        layout: str = "",
        rank: int = 0,
        limit_bytes: int = 0,
        pinned_extents: int = 1,
        ledger: str = "",
        shared: bool = False,
        terms: LeaseTerms | None = None,
        max_handle_bytes: int = 0,
        sanity_check: bool = False,
        zero_in_steps: bool = False,
    ) -> None:
        """Takes the driver over; it cannot be used afterwards.

        `ledger` is the path of the device's ledger, to be joined on `terms`; empty accounts to
        nobody. `max_handle_bytes` bounds one handle; 0: what the driver finds useful.
        `sanity_check` fills fresh and released memory with 0x3f instead of zeros, and watches
        what stays mapped: see violation. `zero_in_steps` leaves the zeroing of fresh memory to
        zero(), the pinned extents and the sanity check apart.
        """
    def start(self) -> None:
        """Reserve the regions, commit the pinned extents, publish the row; or raise Error and
        leave nothing."""
    def start_by_hand(self) -> None:
        """The same without the thread, for simulations: the caller turns it, and chooses when."""
    def turn(self) -> None:
        """Do what the thread does between two sleeps. For one thread, after start_by_hand()."""
    def stop(self) -> None:
        """Stop the thread and remove the row. Tensors over the regions stay valid."""
    def reserve(self, bytes: int) -> None:
        """What this process will want of the device beside its cache and does not hold now: no
        cache on the device grows into it."""
    @property
    def zeroes_due(self) -> bool:
        """Whether memory waits for zero(), which has to come ahead of the next step."""
    def zero(self, step: int, stream: int = 0) -> None:
        """Queue the zeroing of what waits for it on the stream (a CUstream; 0 is the default one)
        of which step `step` is launched next; launched() follows. Raises Error where the driver
        refuses."""
    def launched(self, step: int, event: int = 0) -> None:
        """Step `step` is launched on this rank; `event` passes when the device is done with it."""
    @property
    def passed_step(self) -> int:
        """The last step that the device was seen to have finished."""
    @property
    def last_error(self) -> str:
        """The driver's last refusal, in one line."""
    @property
    def violation(self) -> str:
        """Where memory was first found written to after its release; empty: nowhere, or nobody
        checks."""
    def region(self, region: int, device_type: int = 1, device_id: int = 0) -> CapsuleType:
        """A region as an int8 array for DLPack, which keeps the pager alive.

        Device types are DLPack's (1 CPU, 2 CUDA). Uncommitted bytes fault when touched. Raises
        IndexError where there is no such region.
        """

@type_check_only
class RowDescription(TypedDict):
    """What Row.describe() returns."""

    mode: Literal["elastic", "vanilla"]
    reason: str
    engine: str
    driver: str
    layout: str
    ledger: str
    lease_slot: int
    pid: int
    rank: int
    num_blocks: int
    blocks_per_extent: int
    num_extents: int
    pinned_extents: int
    max_unit_extents: int
    granule_bytes: int
    extent_bytes: int
    block_bytes: int
    virtual_bytes: int
    limit_bytes: int
    held_bytes: int
    mapped_bytes: int
    used_blocks: int
    cached_blocks: int
    free_blocks: int
    slack_extents: int
    commits: int
    releases: int
    denials: int
    commit_ns: int
    waits: int
    waited_extents: int
    exposed_extents: int
    wait_ns: int
    longest_wait_ns: int
    release_ns: int
    processed_step: int
    passed_step: int

class Row:
    """One rank's row of a page table, as somebody else sees it."""

    @staticmethod
    def attach(path: str) -> Row:
        """Attach to a living process's row; raise Error where there is none."""
    @staticmethod
    def vanilla(path: str, engine: str, reason: str, rank: int = 0) -> Row:
        """Publish that this rank's cache is its engine's own, and why, while the object lives."""
    @property
    def path(self) -> str:
        """The row's file."""
    @property
    def owner_alive(self) -> bool:
        """Whether the process that made the row still lives."""
    def describe(self) -> RowDescription:
        """Facts and counters, by name."""
    def state(self, extent: int) -> Literal["absent", "wanted", "committed", "releasing", "denied"]:
        """An extent's state. Raises IndexError where there is no such extent."""
    def committed(self) -> bytes:
        """A byte for every extent: 1 where it is committed, else 0."""
    def fence(self, extent: int) -> int:
        """The last step that may use a releasing extent; 0: none. Raises IndexError where there is
        no such extent."""

@type_check_only
class LeaseDescription(TypedDict):
    """One rank's lease, as Ledger.describe() tells. Sizes are bytes."""

    slot: int
    group: str
    instance: str
    engine: str
    row: str
    rank: int
    pid: int
    user: int
    alive: bool
    joined_seconds_ago: float
    seen_seconds_ago: float
    virtual_bytes: int
    extent_bytes: int
    held_bytes: int
    backed_bytes: int
    live_bytes: int
    cached_bytes: int
    slack_bytes: int
    leaving_bytes: int
    reserve_bytes: int
    keep_bytes: int
    wanted_bytes: int
    demand_bytes: int
    limit_bytes: int | None
    group_limit_bytes: int | None
    floor_bytes: int
    floor_is_default: bool
    weight: float
    entitlement_bytes: int
    promised_bytes: int
    pressure_bytes: int
    trim_bytes: int
    grants: int
    denials: int
    reclaimed_bytes: int
    orders: int
    orders_done: int
    orders_done_seconds_ago: float

@type_check_only
class LedgerDescription(TypedDict):
    """One device's account, as Ledger.describe() tells. Sizes are bytes."""

    path: str
    device: str
    driver: str
    policy: str
    granule_bytes: int
    capacity_bytes: int
    used_bytes: int
    device_total_bytes: int
    device_free_bytes: int
    sampled_seconds_ago: float
    contended: bool
    deaths: int
    leases: list[LeaseDescription]

class Ledger:
    """One device's account of which instance holds how much."""

    @staticmethod
    def open(path: str) -> Ledger:
        """Open an existing ledger's file. Raises Error where it is none, or another version's."""
    @property
    def path(self) -> str:
        """The ledger's file."""
    def describe(self) -> LedgerDescription:
        """The device and its leases."""
    def snapshot(self) -> tuple[int, int, list[int]]:
        """(used, capacity, held by slot) of one moment, in bytes."""
    def sweep(self) -> int:
        """Give back what dead owners held; return how many there were."""
    def remove_if_unused(self) -> bool:
        """Remove the file where no lease lives; False where one does."""
    def set_limit(self, slot: int, bytes: int) -> int:
        """Most bytes a lease may hold, 0 for no bound. Returns the order's number."""
    def set_group_limit(self, slot: int, bytes: int) -> int:
        """Most bytes a lease's group may hold together; to be set on each member."""
    def set_floor(self, slot: int, bytes: int | None) -> int:
        """Guaranteed bytes; None for the default."""
    def set_weight(self, slot: int, weight: float) -> int:
        """Share against other leases' weights."""
    def trim(self, slot: int, bytes: int) -> int:
        """Ask a lease to give back slack and cached prefixes of so many bytes."""
    def wait_done(self, slot: int, number: int, seconds: float) -> bool:
        """Wait until a lease's owner has carried out an order."""
    def set_policy(self, name: str) -> None:
        """Name the policy that sets entitlements; an empty text for the built-in one."""
    def set_entitlement(self, slot: int, bytes: int) -> None:
        """A lease's entitlement under a named policy."""

class LeaseTerms:
    """What the owner of a lease asks for."""

    def __init__(
        self,
        group: str,
        instance: str,
        engine: str = "",
        row: str = "",
        rank: int = 0,
        limit_bytes: int = 0,
        floor_bytes: int | None = None,
        weight: float = 1.0,
        utilisation: float = 1.0,
        device_limit_bytes: int = 0,
        virtual_bytes: int = 0,
        extent_bytes: int = 0,
        longest_bytes: int = 0,
    ) -> None:
        """Sizes are bytes; a limit of 0 is none, a floor of None the default, the utilisation a
        share of the device from 0 to 1."""

class Lease:
    """A place in a ledger, for as long as the object lives."""

    @staticmethod
    def join(
        path: str,
        device: str,
        driver: str,
        granule_bytes: int,
        device_free: int,
        device_total: int,
        terms: LeaseTerms,
        shared: bool = False,
    ) -> Lease:
        """Join a device's ledger, made where there is none. Raises Error where the floors of all
        leases do not fit together."""
    @property
    def slot(self) -> int:
        """Its place."""
    def resize(self, bytes: int) -> Literal["granted", "no capacity", "over limit", "promised"]:
        """Ask for so many bytes in all; say what came of it."""
    def leave(self) -> None:
        """Hold nothing from here on."""

def remove_dead_ledgers(directory: str) -> list[str]:
    """Give back what dead owners held, and remove ledgers that nobody uses; return their paths."""

def remove_dead_rows(directory: str) -> list[str]:
    """Remove the rows that dead processes left; return their paths."""

class Pool:
    """The scheduler's side of the page table: which block to hand out, which extents to want or
    release. One thread at a time."""

    def __init__(self, paths: Sequence[str], least_slack: int = 1, most_slack: int = 10) -> None:
        """Attaches to the rows of all ranks, in rank order. Raises Error where one is missing,
        vanilla or of another geometry."""
    @property
    def num_free(self) -> int:
        """Blocks to hand out: unhashed and cached."""
    @property
    def num_unhashed(self) -> int:
        """Free blocks that hold no prefix."""
    @property
    def num_cached(self) -> int:
        """Free blocks that hold a prefix."""
    @property
    def cache_held_extents(self) -> int:
        """Extents that only cached blocks keep from being released."""
    @property
    def num_used(self) -> int:
        """Blocks that were handed out."""
    @property
    def num_usable(self) -> int:
        """Blocks of committed extents: used, unhashed and cached."""
    @property
    def num_growable(self) -> int:
        """Blocks that memory not yet taken could back, as far as is known."""
    @property
    def num_blocks(self) -> int:
        """Blocks of the whole address space."""
    @property
    def blocks_per_extent(self) -> int:
        """Blocks of one extent; the last extent may have fewer."""
    @property
    def usable_extents(self) -> int:
        """Extents that are committed on every rank."""
    @property
    def empty_extents(self) -> int:
        """Usable extents without a used or cached block, the pinned ones not counted."""
    @property
    def wanted_extents(self) -> int:
        """Extents that were asked for and not answered yet."""
    @property
    def releasing_extents(self) -> int:
        """Extents on their way out."""
    @property
    def slack_target(self) -> int:
        """Extents to keep free ahead of need."""
    @property
    def denied(self) -> bool:
        """Memory was refused and nothing has changed since, as far as is known."""
    @property
    def denied_recently(self) -> bool:
        """Memory was refused within the last ten seconds."""
    @property
    def in_flight(self) -> bool:
        """A pager owes an answer."""
    @property
    def dead_row(self) -> str:
        """The row of a rank that died, or an empty text."""
    def take_into(self, ids: _Ids | array[int]) -> None:
        """Fill an array of 64-bit ids with blocks taken out, lowest first. Raises ValueError, and
        takes none, where fewer are free."""
    def give(self, ids: _Ids | array[int]) -> None:
        """Return the blocks of an array of 64-bit ids. Raises ValueError, and returns none, where
        one is not in use or comes twice."""
    def give_rest(self, first: int) -> None:
        """Return every used block from this one on."""
    def regard_as_cached(self, blocks: int) -> None:
        """Tell how many used blocks hold nothing but prefixes that the engine could drop."""
    def ensure(self, blocks: int, seconds: float) -> bool:
        """Try to have `blocks` unhashed free blocks within `seconds`. False is an ordinary
        allocation miss."""
    def expect(self, blocks: int, refill: int = 0) -> None:
        """Tell how many free blocks the next steps are expected to take: want what is missing
        without waiting, and keep that much ahead. Where something is missing, want `refill` blocks
        in all, which may stay."""
    def wait(self, seconds: float) -> None:
        """Sleep until a pager answers, at most `seconds`."""
    def begin_step(self, step: int) -> None:
        """Fence blocks freed from now on by this step."""
    def processed(self, step: int) -> None:
        """Every step up to this one has been processed."""
    def balance(self, idle: bool) -> None:
        """Take answers in, keep the slack ahead and release what is beyond it."""
    def end_step(self, expected: int, refill: int, demanded: int, keep_cached: int) -> bool:
        """demand(), expect() and balance(False) in one call. Return whether cached blocks have to
        go: coldest(keep_cached) says which, or owed()."""
    def set_limit(self, bytes: int) -> None:
        """Most physical bytes a rank may hold; 0: no bound but the driver's."""
    def coldest(self, keep: int) -> list[int]:
        """Cached blocks to evict so that at most `keep` remain, coldest extents first."""
    def ask(self, blocks: int) -> None:
        """Tell that a request waits for so many free blocks, until the next step."""
    def demand(self, blocks: int) -> None:
        """Tell how many free blocks the requests at hand will take, however many steps that takes:
        the ledger hears of it, nothing is committed."""
    def owed(self) -> list[int]:
        """Cached blocks to evict because the ledger asks for memory."""
    def keep(self, blocks: int) -> None:
        """The oldest running request holds so many blocks; no neighbour gets at those."""
    def promise(self, blocks: int) -> None:
        """So many free blocks are promised to a request that will take them unasked; they stay free
        until told otherwise."""
    def hold_at_least(self, blocks: int) -> None:
        """No release leaves fewer blocks with memory, used ones included, until told otherwise."""
    @property
    def num_settled(self) -> int:
        """Blocks of all committed extents, those withheld apart."""
    @property
    def num_withheld(self) -> int:
        """Free blocks of extents that are being emptied for somebody else."""
    def stop_emptying(self) -> None:
        """Let those extents stay until the next balance(), so that their free blocks go out
        again."""
    @property
    def pressure(self) -> tuple[int, int]:
        """(soft, hard) extents that neighbours or people ask for now."""
    def wait_for_memory(self, seconds: float) -> None:
        """Sleep until what was refused may be had, at most `seconds`."""
    def wait_for_bell(self, seconds: float) -> None:
        """Sleep until somebody wants something of this engine's leases, at most `seconds`. May be
        called by another thread than the rest."""
    def ring(self) -> None:
        """Wake who sleeps in wait_for_bell()."""
    @property
    def has_leases(self) -> bool:
        """Whether the ranks account to a ledger."""
    @property
    def has_orders(self) -> bool:
        """Somebody has changed a lease by hand, and nobody has said that it is carried out."""
    def orders_done(self) -> None:
        """Report orders given by hand as carried out."""
    def units(self) -> list[tuple[int, int]]:
        """(first, count) of every unit that is committed on every rank, the pinned extents apart:
        one handle a region part backs each."""
    def in_order(self) -> list[int]:
        """Free block ids in the order of handing out."""

class BlockQueue(Generic[_BlockT]):
    """A pool behind the interface of vLLM's FreeKVCacheBlockQueue: blocks prepended hold no
    prefix, blocks appended do.

    Blocks without a prefix go out first, lowest id first; then those with one, least recently
    appended first.
    """

    def __init__(self, pool: Pool, blocks: list[_BlockT], layers: int = 1) -> None:
        """`blocks` is the engine's list of all blocks, in the order of their ids. With `layers`
        above 1 the ids jump: behind those of an extent come those of its other layers' pages.
        Raises ValueError where the pool counts another number."""
    @property
    def num_free_blocks(self) -> int:
        """Blocks that popleft_n can give."""
    def popleft(self) -> _BlockT:
        """Take a block out. Raises ValueError where none is free."""
    def popleft_n(self, n: int) -> list[_BlockT]:
        """Take `n` blocks out. Raises ValueError, and takes none, where fewer are free."""
    def remove(self, block: _BlockT) -> None:
        """Take this block out. Raises ValueError where it is not free."""
    def append(self, block: _BlockT) -> None:
        """Return a block that holds a prefix. Raises ValueError where it is not in use."""
    def append_n(self, blocks: list[_BlockT]) -> None:
        """Return blocks that hold a prefix."""
    def prepend_n(self, blocks: list[_BlockT]) -> None:
        """Return blocks that hold none."""
    def forget(self, blocks: Sequence[int]) -> None:
        """Cached blocks whose prefix is gone become free, by their places in the engine's list;
        others are ignored."""
    def holds(self, block: _BlockT) -> bool:
        """Whether what was written to a block is still there for whoever finds its prefix: it is
        in use, or cached."""
    def get_all_free_blocks(self) -> list[_BlockT]:
        """Free blocks in the order of handing out."""
    def iter_blocks_after(self, cursor: _BlockT | None) -> Iterator[_BlockT]:
        """Free blocks in the order of handing out, after the cursor."""
