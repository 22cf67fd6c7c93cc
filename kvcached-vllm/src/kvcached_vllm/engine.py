"""What differs between the vLLM versions that are served: the one place that knows.

Nothing here compares version numbers. Each function looks for the thing itself, so that a version
that brings or drops it is met as it is; :mod:`kvcached_vllm.contract` says what all of them must
have. Imports nothing of vLLM until it is asked, because vLLM's platform plugin asks first.

Where a function names versions, they are those in whose sources the difference was found.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec


# -- Configuration ----------------------------------------------------------------------------


def watermark(config: VllmConfig) -> float:
    """The share of the cache that admission leaves free, from 0.24 on; 0 before."""
    return float(getattr(config.scheduler_config, "watermark", 0.0))


# -- The KV cache's description ---------------------------------------------------------------


@functools.cache
def describes_one_buffer() -> bool:
    """Whether a tensor lists its layers with a stride between them: one backing allocation for
    all, from 0.29 on."""
    return "layers" in _tensor_fields()


@functools.cache
def packs_blocks() -> bool:
    """Whether a tensor may lie inside a block of all layers, from 0.24 on."""
    return "block_stride" in _tensor_fields()


def _tensor_fields() -> Mapping[str, Any]:
    from vllm.v1.kv_cache_interface import KVCacheTensor

    fields: Mapping[str, Any] = KVCacheTensor.__dataclass_fields__
    return fields


def parts_of(spec: KVCacheSpec) -> Mapping[str, KVCacheSpec] | None:
    """The specifications by layer of a group of several (UniformTypeKVCacheSpecs, from 0.11 on),
    or None where the group has one."""
    return getattr(spec, "kv_cache_specs", None)


def has_states(config: KVCacheConfig) -> bool:
    """Whether some layers keep a state (Mamba and its like) instead of keys and values."""
    from vllm.v1.kv_cache_interface import MambaSpec

    return any(
        isinstance(part, MambaSpec)
        for group in config.kv_cache_groups
        for part in (parts_of(group.kv_cache_spec) or {"": group.kv_cache_spec}).values()
    )


def zeroes_blocks(config: KVCacheConfig) -> bool:
    """Whether vLLM zeroes blocks as it hands them out, which some models want from 0.17 on."""
    return bool(getattr(config, "needs_kv_cache_zeroing", False))


# -- The scheduler ----------------------------------------------------------------------------


def most_requests(scheduler: Any) -> int:
    """How many requests may be in a batch: from 0.31 on vLLM has a bound of its own for that."""
    most: int = getattr(scheduler, "max_num_active_reqs", scheduler.max_num_running_reqs)
    return most


def anybody_waits(scheduler: Any) -> bool:
    """Whether a request waits; 0.20 to 0.30 keep those that had to be passed over apart."""
    return bool(scheduler.waiting) or bool(getattr(scheduler, "skipped_waiting", None))
