"""All ranks of a tensor-parallel group see the same pages: the fewest that any of them can offer.

Every rank has its own scheduler, and all must decide alike. What a rank can offer depends on its
device and its neighbours there, so the ranks agree before a batch is formed, at the same turn of
their loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

#: Turns of an idle loop between two agreements. Idle ranks turn in lockstep, thousands of times a
#: second, and only answer neighbours.
IDLE_TURNS = 64


@dataclass(frozen=True)
class Terms:
    """What the next batch is formed with."""

    pages: int
    """Pages that the engine may use, those in use included."""
    evict: int
    """Tokens of cached prefixes to drop."""


class Agreement:
    """Settles terms among the ranks. Every rank must call it at the same turns."""

    def __init__(self, group: Any, ranks: int) -> None:
        """`group`: the ranks' process group for CPU tensors."""
        self._group = group
        self.ranks = ranks

    def settle(self, own: Terms) -> Terms:
        """The fewest pages and the most to evict of all ranks."""
        if self.ranks == 1:
            return own
        both = torch.tensor([own.pages, -own.evict], dtype=torch.int64)
        torch.distributed.all_reduce(both, op=torch.distributed.ReduceOp.MIN, group=self._group)
        return Terms(int(both[0]), -int(both[1]))
