"""This engine's kvcached metrics among SGLang's own, on its ``/metrics`` (``--enable-metrics``).

SGLang serves the files that its processes write (PROMETHEUS_MULTIPROC_DIR); the scheduler of rank
0 copies into them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kvcached_sglang import identity

if TYPE_CHECKING:
    from kvcached.inventory import LeaseView
    from kvcached.settings import Settings
    from kvcached_sglang.memory import Place


def publish(server_args: Any, settings: Settings, place: Place) -> None:
    """Copies this engine's metrics from now on, where SGLang serves any."""
    if not getattr(server_args, "enable_metrics", False):
        return
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return
    # prometheus_client decides at its import whether it writes files.
    from kvcached.telemetry.collector import LedgerCollector
    from kvcached.telemetry.multiprocess import MultiprocessCopy

    group = identity.group_of(settings)

    def ours(lease: LeaseView) -> bool:
        return lease.group == group and lease.instance == place.instance

    MultiprocessCopy(LedgerCollector(identity.directory(settings), ours)).start()
