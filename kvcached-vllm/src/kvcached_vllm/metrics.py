"""This engine's kvcached metrics among vLLM's own, on its ``/metrics``.

One API server collects at each scrape, through ``prometheus_client``'s default registry, which
vLLM serves. Several API servers serve files instead (PROMETHEUS_MULTIPROC_DIR), and the first of
them copies into those. A plugin of vLLM's group for stat loggers would serve both, but its mere
presence turns the engine's statistics on where the user has turned them off.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY

from kvcached.telemetry.collector import LedgerCollector
from kvcached.telemetry.multiprocess import MultiprocessCopy
from kvcached_vllm import identity

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from kvcached.inventory import LeaseView
    from kvcached.settings import Settings

#: Instance ids, with commas between. vLLM gives every API server of several a configuration with an
#: id of its own; their launcher's is the engine's, and its children inherit it here.
LAUNCHED = "_KVCACHED_LAUNCHED"

#: vLLM's number of the process that starts several API servers and is none.
_LAUNCHER = -1

# A process may attach several configurations, and vLLM settles the id of some after that.
_published: list[VllmConfig] = []
# This process's collector, once it has one.
_serving: list[LedgerCollector] = []


def publish(vllm_config: VllmConfig, settings: Settings) -> None:
    """Puts the metrics of a configuration's engine where this process serves metrics, if it does.

    To be called in the process that makes the configuration. Raises shm.SharedMemoryError where
    there can be no ledgers.
    """
    _published.append(vllm_config)
    rank = getattr(vllm_config.parallel_config, "_api_process_rank", 0)
    if rank == _LAUNCHER:
        os.environ[LAUNCHED] = ",".join(config.instance_id for config in _published)
    elif _serving:
        return  # for this configuration, too
    elif "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        _serving.append(_collector(settings))
        REGISTRY.register(_serving[0])
    elif rank == 0:
        _serving.append(_collector(settings))
        MultiprocessCopy(_serving[0]).start()


def _collector(settings: Settings) -> LedgerCollector:
    group = identity.group_of(settings)

    def ours(lease: LeaseView) -> bool:
        return lease.group == group and _instance_id(lease.instance) in _ids()

    return LedgerCollector(identity.directory(settings), ours)


def _ids() -> set[str]:
    ids = {config.instance_id for config in _published}
    return ids.union(os.environ.get(LAUNCHED, "").split(","))


def _instance_id(instance: str) -> str:
    # See identity.instance_of(): all data-parallel ranks are one engine here.
    return instance.rpartition("-dp")[0]
