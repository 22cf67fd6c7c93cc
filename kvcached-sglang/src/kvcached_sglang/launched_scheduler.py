"""SGLang's scheduler, worker and model runner of 0.5.9 and 0.5.10, with an elastic KV cache.

Subclasses, where later versions have hooks; what they do is the same.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.configs.model_config import is_deepseek_nsa
from sglang.srt.layers.dp_attention import get_attention_tp_size
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.model_executor.model_runner import ModelRunner
from torch.overrides import TorchFunctionMode

from kvcached_sglang import NotElastic, allocators, pools, reasons, scheduling
from kvcached_sglang.allocation import TensorsOverRegion
from kvcached_sglang.launched_allocators import elastic_allocator

if TYPE_CHECKING:
    from collections.abc import Callable

_RANKS = ("gpu_id", "tp_rank", "moe_ep_rank", "pp_rank", "dp_rank", "nccl_port", "server_args")
#: What a scheduler passes to its worker.
WORKER = (*_RANKS, "attn_cp_rank", "moe_dp_rank")
#: What a worker passes to its model runner.
RUNNER = (
    *_RANKS,
    "model_config",
    "tp_size",
    "pp_size",
    "is_draft_worker",
    "req_to_token_pool",
    "token_to_kv_pool_allocator",
    "memory_pool_config",
)


class ElasticScheduler(Scheduler):  # type: ignore[misc]
    """Its worker's cache is elastic, and it looks after it before every batch."""

    def init_tp_model_worker(self) -> None:
        self.tp_worker = _made_of(self, ElasticWorker, WORKER)

    def get_next_batch_to_run(self, *args: Any, **kwargs: Any) -> Any:
        scheduling.before_batch(self)
        return super().get_next_batch_to_run(*args, **kwargs)

    def run_batch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return scheduling.run_batch(Scheduler.run_batch, self, batch, *args, **kwargs)

    def _get_token_info(self) -> Any:
        # What SGLang's leak check sums up: withheld tokens are neither lost nor in use.
        used, _, available, evictable = super()._get_token_info()
        supply = allocators.supply_of(self.token_to_kv_pool_allocator)
        withheld = 0 if supply is None else supply.withheld_tokens
        whole = self.max_total_num_tokens
        return used - withheld, used / whole, available + withheld, evictable


class ElasticWorker(TpModelWorker):  # type: ignore[misc]
    """Its model runner's cache is elastic."""

    def _init_model_runner(self) -> None:
        self._model_runner = _made_of(
            self,
            ElasticModelRunner,
            RUNNER,
            mem_fraction_static=self.server_args.mem_fraction_static,
            moe_ep_size=self.ep_size,
        )


class ElasticModelRunner(ModelRunner):  # type: ignore[misc]
    """Its KV tensors lie over a region, and its allocator hands out what has memory."""

    def profile_max_num_token(self, *args: Any, **kwargs: Any) -> int:
        found: int = super().profile_max_num_token(*args, **kwargs)
        return pools.bounded(found * self._token_bytes()) // self._token_bytes()

    def _token_bytes(self) -> int:
        pool = self._expected_pool()
        return int(pool.layer_num * pool.store_dtype.itemsize * _elements(pool))

    def init_memory_pool(self, *args: Any, **kwargs: Any) -> None:
        make = super().init_memory_pool
        if self.is_draft_worker:
            make(*args, **kwargs)
            return
        reason = self._reason_against() or pools.reason_against(self)
        if reason is not None:
            pools.stay_vanilla(reason)
            make(*args, **kwargs)
            return
        with _PoolOverRegion(self._memory) as made:
            make(*args, **kwargs)
        pool = self.token_to_kv_pool
        if made.mode is None:
            pools.stay_vanilla(f"KV pools of kind {type(pool).__name__} are not covered")
            return
        reason = reasons.pool_reason(pool)
        if made.mode.unused and reason is None:
            reason = "SGLang did not allocate its KV pool where it was expected"
        if reason is not None:
            # Some of its tensors have no memory.
            raise NotElastic(f"kvcached: {reason}; start with ENABLE_KVCACHED=false")
        allocator = elastic_allocator(self.token_to_kv_pool_allocator)
        self.token_to_kv_pool_allocator: Any = allocator
        pools.attach(allocator, [(pool, made.memory)])

    def _reason_against(self) -> str | None:
        if is_deepseek_nsa(self.model_config.hf_config):
            return "DSA index caches are not covered"
        if getattr(self.server_args, "enable_double_sparsity", False):
            return "double sparsity is not covered"
        if self.server_args.enable_dp_attention:
            return "data-parallel attention is not covered with this SGLang"
        if self.is_hybrid_swa:
            return "sliding windows in a hybrid pool are not covered with this SGLang"
        if self.server_args.pp_size > 1:
            return "pipeline parallelism is not covered with this SGLang"
        return None

    def _expected_pool(self) -> SimpleNamespace:
        """What SGLang's pool will be, as far as its memory is concerned."""
        config = self.model_config
        size = getattr(self, "max_total_num_tokens", 0)
        common = {
            "size": size,
            "page_size": self.server_args.page_size,
            "device": self.device,
            "layer_num": self.num_effective_layers,
            # 8-bit floats are stored as bytes.
            "store_dtype": torch.uint8
            if self.kv_cache_dtype.itemsize == 1
            else self.kv_cache_dtype,
        }
        if self.use_mla_backend:
            rank = config.kv_lora_rank
            dim = rank + config.qk_rope_head_dim
            return SimpleNamespace(**common, kv_lora_rank=rank, kv_cache_dim=dim)
        return SimpleNamespace(
            **common,
            head_num=config.get_num_kv_heads(get_attention_tp_size()),
            head_dim=config.head_dim,
            v_head_dim=config.head_dim,
        )

    def _memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        """The rank's memory, where a tensor of this shape is the first of the KV pool's."""
        pool = self._expected_pool()
        inner = (1, pool.kv_cache_dim) if self.use_mla_backend else (pool.head_num, pool.head_dim)
        if not pool.size or dtype is not pool.store_dtype:
            return None
        if shape != (pool.size + pool.page_size, *inner):
            return None
        return pools.memory_for(pool, pools.place_of(self))


class _PoolOverRegion(TorchFunctionMode):  # type: ignore[misc]
    """Makes a rank's memory when SGLang asks for its first KV tensor, and hands it out."""

    def __init__(self, memory: Callable[[tuple[int, ...], torch.dtype], Any]) -> None:
        super().__init__()
        self._make = memory
        self.memory: Any = None
        self.mode: TensorsOverRegion | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """PyTorch's hook; see TorchFunctionMode."""
        kwargs = kwargs or {}
        if self.mode is None and func is torch.zeros and len(args) == 1:
            dtype = kwargs.get("dtype")
            self.memory = self._make(tuple(args[0]), dtype) if type(args[0]) is tuple else None
            if self.memory is not None:
                self.mode = TensorsOverRegion(self.memory.buffers, self.memory.region, dtype)
        if self.mode is not None:
            return self.mode.__torch_function__(func, types, args, kwargs)
        return func(*args, **kwargs)


def _stored_as(dtype: torch.dtype) -> torch.dtype:
    # 8-bit floats are stored as bytes.
    return torch.uint8 if dtype.itemsize == 1 else dtype


def _elements(pool: SimpleNamespace) -> int:
    """Numbers of one token in one layer."""
    if hasattr(pool, "kv_cache_dim"):
        return int(pool.kv_cache_dim)
    return int(pool.head_num * (pool.head_dim + pool.v_head_dim))


def _made_of(owner: Any, kind: Any, names: tuple[str, ...], **more: Any) -> Any:
    """A `kind`, as SGLang makes its own: of these attributes of the owner, where its version has
    them."""
    known = inspect.signature(kind.__init__).parameters
    found = {name: getattr(owner, name) for name in names if name in known}
    return kind(**found, **more)
