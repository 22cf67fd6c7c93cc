"""Which configurations are served, over vLLM's own configuration objects."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from kvcached.settings import SettingsError
from kvcached_vllm import NotElastic
from kvcached_vllm.attach import attach, chosen_by_user, settings, vanilla_reason

SetEnvironment = Callable[..., None]

pytestmark = pytest.mark.usefixtures("set_environment")


def classes(config: Any) -> tuple[Any, Any]:
    return config.scheduler_config.scheduler_cls, config.parallel_config.worker_cls


def test_an_engine_as_vllm_configures_it_is_elastic(settled_config: Any) -> None:
    assert classes(settled_config) == (
        "kvcached_vllm.scheduler.ElasticScheduler",
        "kvcached_vllm.cpu_worker.ElasticCPUWorker",
    )
    assert vanilla_reason(settled_config) is None
    assert chosen_by_user(settled_config) is None


def test_both_classes_are_named_where_vllm_has_its_defaults(vanilla_config: Any) -> None:
    attach(vanilla_config, None)
    assert classes(vanilla_config) == (
        "kvcached_vllm.scheduler.ElasticScheduler",
        "kvcached_vllm.cpu_worker.ElasticCPUWorker",
    )


def test_an_asynchronous_engine_gets_the_asynchronous_scheduler(vanilla_config: Any) -> None:
    vanilla_config.scheduler_config.async_scheduling = True
    attach(vanilla_config, None)
    assert classes(vanilla_config)[0] == "kvcached_vllm.scheduler.ElasticAsyncScheduler"


def test_a_gpu_worker_becomes_the_elastic_gpu_worker(vanilla_config: Any) -> None:
    vanilla_config.parallel_config.worker_cls = "vllm.v1.worker.gpu_worker.Worker"
    attach(vanilla_config, None)
    assert classes(vanilla_config)[1] == "kvcached_vllm.gpu_worker.ElasticGPUWorker"


def test_attaching_twice_changes_nothing_more(vanilla_config: Any) -> None:
    attach(vanilla_config, None)
    once = classes(vanilla_config)
    attach(vanilla_config, chosen_by_user(vanilla_config))
    assert classes(vanilla_config) == once


def test_the_named_classes_exist_and_are_vllms_own_kind(settled_config: Any) -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.worker_base import WorkerBase

    from kvcached_vllm import attach as module

    for name in (module._SCHEDULER, module._ASYNC_SCHEDULER):
        assert issubclass(resolve_obj_by_qualname(name), Scheduler)
    for vanilla, ours in module._WORKERS.items():
        assert issubclass(resolve_obj_by_qualname(ours), resolve_obj_by_qualname(vanilla))
        assert issubclass(resolve_obj_by_qualname(ours), WorkerBase)


@pytest.mark.parametrize(
    ("part", "field", "value", "named"),
    [
        ("scheduler_config", "scheduler_cls", "my.Scheduler", "--scheduler-cls my.Scheduler"),
        ("parallel_config", "worker_cls", "my.Worker", "--worker-cls my.Worker"),
    ],
)
def test_a_users_choice_stays_and_is_named(
    vanilla_config: Any, lines: list[str], part: str, field: str, value: str, named: str
) -> None:
    setattr(getattr(vanilla_config, part), field, value)
    before = classes(vanilla_config)
    choice = chosen_by_user(vanilla_config)
    assert choice == named
    attach(vanilla_config, choice)
    assert classes(vanilla_config) == before
    assert lines == [f"kvcached: vanilla: {named} was chosen"]


def test_the_default_is_no_choice(vanilla_config: Any) -> None:
    vanilla_config.parallel_config.worker_cls = "auto"
    assert chosen_by_user(vanilla_config) is None


def test_vllms_own_worker_named_by_the_user_is_a_choice(vanilla_config: Any) -> None:
    choice = "--worker-cls vllm.v1.worker.cpu_worker.CPUWorker"
    assert chosen_by_user(vanilla_config) == choice
    attach(vanilla_config, choice)
    # And stays one in a copy of that configuration.
    assert chosen_by_user(copy.deepcopy(vanilla_config)) == choice


def test_vllms_own_worker_in_a_copy_of_a_vanilla_configuration_is_no_choice(
    vanilla_config: Any,
) -> None:
    vanilla_config.model_config.enable_sleep_mode = True
    attach(vanilla_config, None)
    assert chosen_by_user(copy.deepcopy(vanilla_config)) is None


def connect(config: Any, name: str, **options: Any) -> None:
    from vllm.config import KVTransferConfig

    config.kv_transfer_config = KVTransferConfig(kv_connector=name, kv_role="kv_both", **options)


def in_background_on_a_gpu(config: Any) -> None:
    config.parallel_config.worker_cls = "vllm.v1.worker.gpu_worker.Worker"
    connect(config, "OffloadingConnector")


def over_the_network(config: Any) -> None:
    connect(config, "NixlConnector")


def the_users_own(config: Any) -> None:
    connect(config, "ExampleConnector", kv_connector_module_path="somewhere")


def example_on_a_gpu(config: Any) -> None:
    config.parallel_config.worker_cls = "vllm.v1.worker.gpu_worker.Worker"
    connect(config, "ExampleConnector")


def offloading(config: Any) -> None:
    config.cache_config.kv_offloading_size = 8.0


def nodes(config: Any) -> None:
    config.parallel_config.nnodes = 2


def ray(config: Any) -> None:
    config.parallel_config.distributed_executor_backend = "ray"


def sleep(config: Any) -> None:
    config.model_config.enable_sleep_mode = True


def elastic_experts(config: Any) -> None:
    config.parallel_config.enable_elastic_ep = True


def diffusion(config: Any) -> None:
    config.diffusion_config = object()


def other_worker(config: Any) -> None:
    config.parallel_config.worker_cls = "vllm.v1.worker.xpu_worker.XPUWorker"


NOT_COVERED = [
    (in_background_on_a_gpu, "the KV connector OffloadingConnector is not covered"),
    (over_the_network, "the KV connector NixlConnector is not covered"),
    (the_users_own, "the KV connector ExampleConnector is not covered"),
    (example_on_a_gpu, "the KV connector ExampleConnector is not covered"),
    (offloading, "a KV connector for --kv-offloading-size is not covered"),
    (nodes, "an engine over several nodes is not covered"),
    (ray, "the executor 'ray' is not covered"),
    (sleep, "sleep mode is not covered"),
    (elastic_experts, "elastic expert parallelism is not covered"),
    (diffusion, "diffusion models are not covered"),
    (other_worker, "the worker vllm.v1.worker.xpu_worker.XPUWorker is not covered"),
]


@pytest.mark.parametrize(("change", "reason"), NOT_COVERED)
def test_what_is_not_covered_stays_vanilla_and_says_why(
    vanilla_config: Any, lines: list[str], change: Callable[[Any], None], reason: str
) -> None:
    change(vanilla_config)
    before = classes(vanilla_config)
    assert vanilla_reason(vanilla_config) == reason
    attach(vanilla_config, None)
    assert classes(vanilla_config) == before
    assert lines == [f"kvcached: vanilla: {reason}"]


@pytest.mark.parametrize(("change", "reason"), NOT_COVERED)
def test_what_is_not_covered_is_refused_where_the_user_demands_it(
    vanilla_config: Any,
    set_environment: SetEnvironment,
    change: Callable[[Any], None],
    reason: str,
) -> None:
    set_environment(KVCACHED_REQUIRED="true")
    change(vanilla_config)
    with pytest.raises(NotElastic) as caught:
        attach(vanilla_config, None)
    assert str(caught.value) == f"kvcached: KVCACHED_REQUIRED=true, but: {reason}"


def test_the_example_connector_is_covered_on_a_cpu(vanilla_config: Any) -> None:
    connect(vanilla_config, "ExampleConnector")
    assert vanilla_reason(vanilla_config) is None


def test_experts_are_covered_unless_data_is_parallel(settled_experts: Any) -> None:
    config = copy.deepcopy(settled_experts)
    assert vanilla_reason(config) is None
    config.parallel_config.data_parallel_size = 2
    assert vanilla_reason(config) == "a mixture of experts under data parallelism is not covered"


def test_dense_models_are_covered_when_data_is_parallel(vanilla_config: Any) -> None:
    vanilla_config.parallel_config.data_parallel_size = 2
    assert vanilla_reason(vanilla_config) is None


@pytest.mark.parametrize("backend", [None, "mp", "uni"])
def test_executors_on_one_node_are_covered(vanilla_config: Any, backend: str | None) -> None:
    vanilla_config.parallel_config.distributed_executor_backend = backend
    assert vanilla_reason(vanilla_config) is None


def test_a_fragment_of_a_configuration_is_left_alone(vanilla_config: Any, lines: list[str]) -> None:
    vanilla_config.model_config = None
    before = classes(vanilla_config)
    attach(vanilla_config, "--worker-cls my.Worker")
    assert classes(vanilla_config) == before
    assert lines == []


def test_a_variable_that_does_not_parse_stops_the_engine(
    vanilla_config: Any, set_environment: SetEnvironment
) -> None:
    set_environment(KVCACHED_LIMIT="much")
    with pytest.raises(SettingsError, match="KVCACHED_LIMIT=much: allowed is"):
        attach(vanilla_config, None)


def test_variables_that_are_not_read_are_named_once(
    set_environment: SetEnvironment, lines: list[str]
) -> None:
    set_environment(KVCACHED_LIMITS="1G")
    settings()
    settings()
    (line,) = lines
    assert "did you mean KVCACHED_LIMIT?" in line


def test_the_settings_level_is_our_loggers(set_environment: SetEnvironment) -> None:
    import logging

    set_environment(KVCACHED_LOG_LEVEL="error")
    settings()
    assert logging.getLogger("vllm.kvcached").level == logging.ERROR
    set_environment(KVCACHED_LOG_LEVEL="info")
    settings()


def test_rows_are_named_for_group_instance_and_index(
    settled_config: Any, set_environment: SetEnvironment
) -> None:
    from kvcached_vllm import identity

    set_environment(KVCACHED_IPC_NAME="kvcached_gpu0")
    path = identity.row_path(settled_config, settings(), 3)
    assert path.name == f"kvcached_gpu0-{settled_config.instance_id}-dp0.3.row"
