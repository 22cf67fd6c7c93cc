"""KVCACHED_SANITY_CHECK=true: each batch is checked against the page table before its launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from kvcached import _C


class SanityError(RuntimeError):
    """What is wrong with a batch or with the memory, in one line. The engine must stop."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"kvcached: sanity check: step {step}: {what}")


class StepCheck:
    """Looks up the pages of every request of a batch, in SGLang's own table of them.

    The scheduler forms and launches a batch in one turn of its loop, and frees nothing in between:
    each page that a batch reads or writes must lie in an extent that is COMMITTED on its rank.
    """

    def __init__(
        self, pager: _C.Pager, row: _C.Row, page_size: int, slots: torch.Tensor | None = None
    ) -> None:
        """`row` is that of the rank whose `pager` it is. `slots`: where the cache's slots are
        others than those of the engine's table, by these; 0 for none."""
        facts = row.describe()
        self._pager = pager
        self._row = row
        self._rank = facts["rank"]
        self._page_size = page_size
        self._slots_by = slots
        self._slots_per_extent = facts["blocks_per_extent"] * page_size
        self._slots = facts["num_blocks"] * page_size
        self._extents = facts["num_extents"]

    def check(self, batch: Any, step: int) -> None:
        """Raises SanityError for the first slot of batch `step` that has no memory on this rank,
        for one that was handed out twice, or where memory was written to after its release. Waits
        for the device's copies, as nothing else in a step does."""
        if violation := self._pager.violation:
            raise SanityError(step, f"rank {self._rank}: {violation}")
        if not batch.reqs:
            return
        slots = self._slots_of(batch)
        new = batch.out_cache_loc
        if new is not None:
            new = self._translated(new)
        if new is not None and new.unique().numel() != new.numel():
            raise SanityError(step, f"rank {self._rank}: a slot was handed out twice")
        inside = bool(((slots >= 0) & (slots < self._slots)).all())
        if inside and self._committed()[self._touched(slots, new)].all():
            return
        for request, row in zip(batch.reqs, slots.tolist(), strict=True):
            for slot in row:
                self._judge(step, request.rid, slot)
        for slot in () if new is None else new.tolist():
            self._judge(step, "nobody", slot)

    def _slots_of(self, batch: Any) -> torch.Tensor:
        """A row a request, filled up with slot 0, which always has memory."""
        lengths = batch.seq_lens
        longest = int(lengths.max())
        table = batch.req_to_token_pool.req_to_token[batch.req_pool_indices, :longest]
        there = torch.arange(longest, device=table.device) < lengths[:, None]
        return self._translated(torch.where(there, table, 0).to(torch.int64))

    def _translated(self, slots: torch.Tensor) -> torch.Tensor:
        return slots if self._slots_by is None else self._slots_by[slots]

    def _touched(self, slots: torch.Tensor, new: torch.Tensor | None) -> torch.Tensor:
        """Flags of the extents that a batch reads or writes."""
        touched = torch.zeros(self._extents, dtype=torch.bool, device=slots.device)
        touched[slots.flatten() // self._slots_per_extent] = True
        if new is not None:
            touched[new.to(torch.int64) // self._slots_per_extent] = True
        return touched.cpu()

    def _committed(self) -> torch.Tensor:
        return torch.frombuffer(bytearray(self._row.committed()), dtype=torch.uint8).bool()

    def _judge(self, step: int, name: str, slot: int) -> None:
        who = f"rank {self._rank}: request {name!r} uses slot {slot}"
        if not 0 <= slot < self._slots:
            raise SanityError(step, f"{who}, and there are {self._slots} slots")
        extent = slot // self._slots_per_extent
        state = self._row.state(extent)
        if state != "committed":
            raise SanityError(
                step,
                f"{who} of page {slot // self._page_size}, extent {extent}, which is {state}",
            )
