"""SGLang's own process groups of four ranks, of which two and two share their requests: started as
processes of their own by test_attention_groups.py.

    python attention_groups.py RANK STORE OUT
"""

from __future__ import annotations

import inspect
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

from sglang.srt.distributed import parallel_state

from kvcached_sglang.agreement import Terms
from kvcached_sglang.scheduling import agreement_of

RANKS = 4
REPLICAS = 2


def _groups(rank: int, store: str, stack: ExitStack) -> None:
    init = parallel_state.init_distributed_environment
    init(RANKS, rank, distributed_init_method=f"file://{store}", local_rank=rank, backend="gloo")
    make = parallel_state.initialize_model_parallel
    if "tensor_model_parallel_size" in inspect.signature(make).parameters:
        make(
            tensor_model_parallel_size=RANKS,
            attention_data_parallel_size=REPLICAS,
            backend="gloo",
        )
        return
    # From 0.5.23 on the sizes are read from a context.
    from sglang.srt.runtime_context import get_parallel

    sizes = {
        "tp_size": RANKS,
        "attn_dp_size": REPLICAS,
        "pp_size": 1,
        "moe_ep_size": 1,
        "moe_dp_size": 1,
        "attn_cp_size": 1,
        "attn_dcp_size": 1,
        "shared_experts_tp_size": RANKS,
    }
    stack.enter_context(get_parallel().override(**sizes))
    make(backend="gloo")


def main(rank: int, store: str, out: Path) -> None:
    with ExitStack() as stack:
        _groups(rank, store, stack)
        scheduler = SimpleNamespace(
            attn_tp_cpu_group=parallel_state.get_attn_tp_group().cpu_group,
            tp_cpu_group=parallel_state.get_tp_group().cpu_group,
        )
        agreement = agreement_of(scheduler)
        found = agreement.settle(Terms(pages=10 + rank, evict=5 * rank))
        out.write_text(json.dumps([agreement.ranks, found.pages, found.evict]))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
