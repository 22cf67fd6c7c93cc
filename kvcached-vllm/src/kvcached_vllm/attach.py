"""Whether an engine's configuration can be served elastically, and the two options that do it."""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING

from kvcached import settings as kvcached_settings
from kvcached import shm
from kvcached_vllm import (
    NotElastic,
    connectors,
    engine,
    identity,
    installed_vllm,
    say_once,
    versions,
)
from kvcached_vllm.cleanup import remove_rows_at_exit
from kvcached_vllm.metrics import publish

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "kvcached_vllm.cpu_worker.ElasticCPUWorker",
    "vllm.v1.worker.gpu_worker.Worker": "kvcached_vllm.gpu_worker.ElasticGPUWorker",
}
# Workers that vLLM can put to sleep with our cache.
_SLEEPERS = {"vllm.v1.worker.gpu_worker.Worker", _WORKERS["vllm.v1.worker.gpu_worker.Worker"]}
_SCHEDULER = "kvcached_vllm.scheduler.ElasticScheduler"
_ASYNC_SCHEDULER = "kvcached_vllm.scheduler.ElasticAsyncScheduler"
_OURS = {_SCHEDULER, _ASYNC_SCHEDULER, *_WORKERS.values()}

# Why configurations of this process stayed vanilla.
_vanilla_reasons: list[str] = []


@functools.cache
def settings() -> kvcached_settings.Settings:
    """The environment's settings; reads them once and says which variables it does not read."""
    loaded = kvcached_settings.load()
    logging.getLogger("vllm.kvcached").setLevel(loaded.log_level)
    for line in kvcached_settings.unread(os.environ):
        say_once(line)
    return loaded


def chosen_by_user(vllm_config: VllmConfig) -> str | None:
    """The option by which a user chose a scheduler or worker that is not ours, or None.

    To be asked before vLLM fills in its defaults.
    """
    scheduler = vllm_config.scheduler_config.scheduler_cls
    if not engine.is_default_scheduler(scheduler) and scheduler not in _OURS:
        return f"--scheduler-cls {scheduler}"
    worker = vllm_config.parallel_config.worker_cls
    if worker == "auto" or worker in _OURS:
        return None
    choice = f"--worker-cls {worker}"
    if worker in _WORKERS and _vanilla_reasons and f"{choice} was chosen" not in _vanilla_reasons:
        # A copy of a configuration that stayed vanilla holds vLLM's default by name.
        return None
    return choice


def vanilla_reason(vllm_config: VllmConfig) -> str | None:
    """Why this configuration is not covered, or None."""
    parallel = vllm_config.parallel_config
    worker = parallel.worker_cls
    if worker not in _WORKERS and worker not in _OURS:
        return f"the worker {worker} is not covered"
    if (reason := versions.device_reason(installed_vllm(), _device(vllm_config))) is not None:
        return reason
    if (reason := connectors.reason(vllm_config, _device(vllm_config))) is not None:
        return reason
    if getattr(parallel, "nnodes", 1) > 1:
        return "an engine over several nodes is not covered"
    if parallel.distributed_executor_backend not in (None, "mp", "uni"):
        return f"the executor {parallel.distributed_executor_backend!r} is not covered"
    if parallel.data_parallel_size > 1 and engine.is_mixture_of_experts(vllm_config):
        return "a mixture of experts under data parallelism is not covered"
    if getattr(vllm_config, "diffusion_config", None) is not None:
        return "diffusion models are not covered"
    if vllm_config.model_config.enable_sleep_mode and worker not in _SLEEPERS:
        return "sleep mode is not covered"
    if getattr(parallel, "enable_elastic_ep", False):
        return "elastic expert parallelism is not covered"
    return None


def _device(vllm_config: VllmConfig) -> str:
    worker = vllm_config.parallel_config.worker_cls
    return "cpu" if "cpu_worker" in worker else "cuda"


def _shared_memory_reason(wanted: kvcached_settings.Settings) -> str | None:
    """Why there can be no page table, or None."""
    try:
        shm.check_room(identity.directory(wanted))
    except shm.SharedMemoryError as error:
        return str(error).removeprefix("kvcached: ")
    return None


def attach(vllm_config: VllmConfig, user_choice: str | None) -> None:
    """Names our scheduler and worker in a configuration, or says why not.

    Both or neither. Raises NotElastic where the user demands an elastic engine that cannot be,
    SettingsError where a variable does not parse.
    """
    if vllm_config.model_config is None:
        return  # a fragment of a configuration, such as vLLM makes for its own lookups
    wanted = settings()
    reason = f"{user_choice} was chosen" if user_choice else vanilla_reason(vllm_config)
    reason = reason or _shared_memory_reason(wanted)
    if reason is not None:
        if wanted.required:
            raise NotElastic(f"kvcached: KVCACHED_REQUIRED=true, but: {reason}")
        _vanilla_reasons.append(reason)
        say_once(f"kvcached: vanilla: {reason}")
        return
    if (caution := versions.caution(installed_vllm(), _device(vllm_config))) is not None:
        say_once(f"kvcached: {caution}")
    remove_rows_at_exit(vllm_config, wanted)
    publish(vllm_config, wanted)
    parallel = vllm_config.parallel_config
    parallel.worker_cls = _WORKERS.get(parallel.worker_cls, parallel.worker_cls)
    scheduler = vllm_config.scheduler_config
    ahead = engine.schedules_asynchronously(scheduler)
    scheduler.scheduler_cls = _ASYNC_SCHEDULER if ahead else _SCHEDULER
