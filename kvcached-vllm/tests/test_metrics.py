"""This engine's metrics where vLLM serves its own."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest

from kvcached import _C
from kvcached_vllm import identity, metrics
from kvcached_vllm.attach import settings


@pytest.fixture
def publish(
    tmp_path: Path, set_environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Any], None]]:
    """Publishes configurations as a process does that has made none before."""
    monkeypatch.setenv(metrics.LAUNCHED, "")
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    set_environment(KVCACHED_SHM_DIR=str(tmp_path))
    before = metrics._serving[:]
    for collector in before:  # the fixtures' own configurations
        REGISTRY.unregister(collector)
    metrics._serving.clear()
    monkeypatch.setattr(metrics, "_published", [])
    yield lambda config: metrics.publish(config, settings())
    for collector in metrics._serving:
        REGISTRY.unregister(collector)
    metrics._serving[:] = before
    for collector in before:
        REGISTRY.register(collector)


def join(directory: Path, instance: str, group: str = "vllm", rank: int = 0) -> _C.Lease:
    terms = _C.LeaseTerms(group, instance, engine="vllm", rank=rank)
    path = str(directory / "host.ledger")
    return _C.Lease.join(path, "host", "host", 64 << 10, 1 << 30, 2 << 30, terms)


def engines() -> set[str]:
    """The engines that a scrape of this process tells of."""
    found = set()
    for family in REGISTRY.collect():
        if family.name == "kvcached_lease_info":
            found = {sample.labels["engine_instance"] for sample in family.samples}
    return found


def of_another_start(config: Any, instance_id: str, api_server: int) -> Any:
    other = copy.deepcopy(config)
    other.instance_id = instance_id
    other.parallel_config._api_process_rank = api_server
    return other


def test_the_registry_that_vllm_serves_has_this_engines_leases_alone(
    vanilla_config: Any, publish: Callable[[Any], None], tmp_path: Path
) -> None:
    publish(vanilla_config)
    publish(copy.deepcopy(vanilla_config))  # vLLM copies configurations
    ours = identity.instance_of(vanilla_config)
    leases = [join(tmp_path, name) for name in (ours, "stranger-dp0")]
    leases.append(join(tmp_path, ours, group="elsewhere"))
    assert engines() == {ours}
    assert b"kvcached_device_capacity_bytes" in generate_latest(REGISTRY)
    for lease in leases:
        lease.leave()


def test_data_parallel_ranks_are_one_engine(
    vanilla_config: Any, publish: Callable[[Any], None], tmp_path: Path
) -> None:
    publish(vanilla_config)
    ids = [f"{vanilla_config.instance_id}-dp{index}" for index in (0, 1, 11)]
    leases = [join(tmp_path, name) for name in ids]
    assert engines() == set(ids)
    assert len(leases) == 3


def test_an_id_that_is_settled_later_counts(
    vanilla_config: Any, publish: Callable[[Any], None], tmp_path: Path
) -> None:
    publish(vanilla_config)
    vanilla_config.instance_id = "later"
    lease = join(tmp_path, "later-dp0")
    assert engines() == {"later-dp0"}
    lease.leave()


def test_a_launcher_tells_its_children_the_engines_id(
    vanilla_config: Any, publish: Callable[[Any], None], tmp_path: Path
) -> None:
    publish(of_another_start(vanilla_config, "launched", api_server=-1))
    assert os.environ[metrics.LAUNCHED] == "launched"
    assert engines() == set()  # a launcher serves nothing
    publish(of_another_start(vanilla_config, "childs-own", api_server=0))
    lease = join(tmp_path, "launched-dp0")
    assert engines() == {"launched-dp0"}
    lease.leave()


def test_nothing_of_vllm_is_imported() -> None:
    script = "import sys, kvcached_vllm.metrics; print([m for m in sys.modules if m == 'vllm'])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
