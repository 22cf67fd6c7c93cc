"""All ranks that share requests see the same pages: the fewest that any of them can offer.

Every rank has its own scheduler, and those of one attention group must decide alike. What a rank
can offer depends on its device and its neighbours there, so the ranks agree before a batch is
formed, at the same turn of their loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

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

    def __init__(self, least: Callable[[list[int]], list[int]] | None, ranks: int) -> None:
        """`least`: the smallest of all ranks' numbers, place by place; not asked of one rank."""
        self._least = least
        self.ranks = ranks

    def settle(self, own: Terms) -> Terms:
        """The fewest pages and the most to evict of all ranks."""
        if self.ranks == 1 or self._least is None:
            return own
        pages, kept = self._least([own.pages, -own.evict])
        return Terms(pages, -kept)


def least_of(group: Any) -> Callable[[list[int]], list[int]]:
    """One reduction over a process group for CPU tensors."""
    import torch

    def least(numbers: list[int]) -> list[int]:
        each = torch.tensor(numbers, dtype=torch.int64)
        torch.distributed.all_reduce(each, op=torch.distributed.ReduceOp.MIN, group=group)
        found: list[int] = each.tolist()
        return found

    return least
