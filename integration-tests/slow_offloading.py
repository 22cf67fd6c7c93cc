"""vLLM's offloading to host memory for an engine without a GPU, with copies that take their time.

vLLM's own manager says what is kept and where; its worker copies with CUDA alone. This one copies
in threads of its own, each some tenths of a second late, so that a request's blocks are read long
after vLLM has freed them.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

#: Seconds from the order of a copy out of the cache to its beginning.
LATE = 0.3
_AT_ONCE = 16


class SlowWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies between the cache and tensors that have room for so many blocks."""

    def __init__(self, caches: CanonicalKVCaches, room: int) -> None:
        self._pairs = [
            (cache.tensor, torch.zeros((room, *cache.tensor.shape[1:]), dtype=cache.tensor.dtype))
            for cache in caches.tensors
        ]
        self._threads = ThreadPoolExecutor(_AT_ONCE)
        self._jobs: dict[int, Future[None]] = {}

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """Cache to host."""

        def store(blocks: list[int], places: list[int]) -> None:
            time.sleep(LATE)
            for cache, host in self._pairs:
                host[places] = cache[blocks]

        return self._submit(job_id, store, src_spec, dst_spec)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """Host to cache."""

        def load(places: list[int], blocks: list[int]) -> None:
            for cache, host in self._pairs:
                cache[blocks] = host[places]

        return self._submit(job_id, load, src_spec, dst_spec)

    def _submit(self, job_id: int, copy: Any, source: Any, target: Any) -> bool:
        ids = (each.block_ids.tolist() for each in (source, target))
        self._jobs[job_id] = self._threads.submit(copy, *ids)
        return True

    def get_finished(self) -> list[TransferResult]:
        """The copies that are done since the last call; one that failed raises here."""
        done = [job for job, copy in self._jobs.items() if copy.done()]
        for job in done:
            self._jobs.pop(job).result()
        return [TransferResult(job, success=True) for job in done]

    def wait(self, job_ids: set[int]) -> None:
        """Until these copies are done."""
        for job in job_ids & self._jobs.keys():
            self._jobs[job].result()

    def shutdown(self) -> None:
        """After the copies under way."""
        self._threads.shutdown()


class SlowOffloading(CPUOffloadingSpec):  # type: ignore[misc]
    """`kv_connector_extra_config`: spec_name SlowOffloading, spec_module_path slow_offloading."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """One worker, one group of layers, one block a chunk."""
        assert len(kv_caches.group_data_refs) == self.blocks_per_chunk == 1
        return SlowWorker(kv_caches, self.num_chunks)
