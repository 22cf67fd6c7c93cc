"""The ranks of an engine are elastic together, or none is: what one cannot do, all leave."""

from __future__ import annotations


def all_say(yes: bool, ranks: int) -> bool:
    """Whether all ranks of this engine say so. Each must ask, at the same point of its start."""
    if ranks == 1:
        return yes
    import torch
    from sglang.srt.distributed.parallel_state import get_world_group

    said = torch.tensor([int(yes)], dtype=torch.int64)
    torch.distributed.all_reduce(
        said, op=torch.distributed.ReduceOp.MIN, group=get_world_group().cpu_group
    )
    return bool(said.item())
