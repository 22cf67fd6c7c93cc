"""What a layout of the KV cache costs attention: FlashAttention 3 on a GPU, decoding.

One step of `--batch` requests of `--tokens` tokens each is attended to in all layers of a model,
over one piece of memory in which the pages lie

  layer    each layer's apart, as vLLM has them: the yardstick
  extent   in extents of so many bytes, in which a layer's pages lie together
  block    all layers of a block together

and the requests' blocks are `consecutive`, as those of prompts that come into an empty cache, or
`random`. Every round takes all layouts in turn; a ratio is that of one round.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.report import Report, Row, arguments_of
from benchmarks.samples import Samples, ratios

if TYPE_CHECKING:
    import torch

#: Layers, query heads, KV heads of a model; heads are of 128 in bfloat16, blocks of 16 tokens.
SHAPES = {"qwen3-0.6b": (28, 16, 8), "llama-8b": (32, 32, 8)}
HEAD = 128
BLOCK = 16
#: Bytes of one layer in an extent.
PARTS = (128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20)
#: Steps of one sample.
REPEATED = 3


@dataclass(frozen=True)
class Layout:
    """Where the page of block b of a layer lies: at `layer * offset + id(b) * stride`, in pages."""

    name: str
    offset: int
    stride: int
    id_of: Callable[[int], int]


def layouts(layers: int, blocks: int, page: int) -> Iterator[Layout]:
    """All that are compared, the yardstick first."""
    yield Layout("layer", blocks, 1, lambda block: block)
    for part in PARTS:
        size = part // page
        if size > 1:
            name = f"extent of {part * layers / (1 << 20):g} MiB"
            yield Layout(name, size, 1, lambda b, s=size: b // s * s * layers + b % s)  # type: ignore[misc]
    yield Layout("block", 1, layers, lambda block: block)


class Cache:
    """Memory for all layers, seen through one layout."""

    def __init__(self, memory: torch.Tensor, shape: tuple[int, int, int], layout: Layout) -> None:
        """`memory`: bfloat16, all pages."""
        import torch

        layers, _, heads = shape
        page = BLOCK * heads * 2 * HEAD
        pages = memory.numel() // page
        ids = (pages - (layers - 1) * layout.offset - 1) // layout.stride + 1
        self.views = []
        for layer in range(layers):
            view = torch.as_strided(
                memory,
                (ids, BLOCK, heads, 2 * HEAD),
                (layout.stride * page, heads * 2 * HEAD, 2 * HEAD, 1),
                layer * layout.offset * page,
            )
            self.views.append(view.split(HEAD, dim=-1))


def attend(cache: Cache, queries: Any, table: torch.Tensor, tokens: int) -> None:
    """One decoding step in every layer."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    query, starts, lengths = queries
    for keys, values in cache.views:
        flash_attn_varlen_func(
            query,
            keys,
            values,
            max_seqlen_q=1,
            cu_seqlens_q=starts,
            max_seqlen_k=tokens,
            seqused_k=lengths,
            causal=True,
            block_table=table,
            fa_version=3,
        )


def measure(report: Report, options: argparse.Namespace) -> None:
    """Adds a row for every order and layout."""
    import torch

    shape = layers, query_heads, heads = SHAPES[options.shape]
    page = BLOCK * heads * 2 * HEAD * 2
    each = -(-options.tokens // BLOCK)
    granule = max(PARTS) // page
    blocks = -(-options.batch * each // granule) * granule
    memory = torch.zeros(blocks * layers * page // 2, dtype=torch.bfloat16, device="cuda")
    memory.uniform_(-1, 1)
    query = torch.randn(options.batch, query_heads, HEAD, dtype=torch.bfloat16, device="cuda")
    starts = torch.arange(options.batch + 1, dtype=torch.int32, device="cuda")
    lengths = torch.full((options.batch,), options.tokens, dtype=torch.int32, device="cuda")
    for order in ("consecutive", "random"):
        numbers = list(range(options.batch * each))
        if order == "random":
            random.Random(0).shuffle(numbers)
        found = list(layouts(layers, blocks, page))
        steps = []
        for layout in found:
            ids = [layout.id_of(number) for number in numbers]
            table = torch.tensor(ids, dtype=torch.int32, device="cuda").view(options.batch, each)
            steps.append((Cache(memory, shape, layout), table))
        times: dict[str, list[float]] = {layout.name: [] for layout in found}
        for turn in range(options.rounds + 1):
            places = list(range(len(found)))
            for place in places if turn % 2 == 0 else places[::-1]:
                cache, table = steps[place]
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                for _ in range(REPEATED):
                    attend(cache, (query, starts, lengths), table, options.tokens)
                end.record()
                end.synchronize()
                if turn > 0:  # the first meets everything cold
                    spent = 1e3 * begin.elapsed_time(end) / REPEATED / layers
                    times[found[place].name].append(spent)
        yardstick = Samples("us", times[found[0].name])
        for layout in found:
            ours = Samples("us", times[layout.name])
            report.add(
                Row(f"{order}, {layout.name}", ratios(ours, yardstick), None, {"a layer": ours})
            )


def main() -> int:
    parser = arguments_of(__doc__ or "")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="qwen3-0.6b")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=576, help="of each request")
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    report = Report("layouts", options)
    measure(report, options)
    return report.finish(f"attention over layouts, {options.shape}: over each layer apart")


if __name__ == "__main__":
    sys.exit(main())
