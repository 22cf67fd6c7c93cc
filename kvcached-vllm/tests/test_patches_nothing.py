"""No module and no class of vLLM is assigned to."""

from __future__ import annotations

import json
import subprocess
import sys

COMPARE = """
import json, pkgutil, sys, types
import vllm.platforms
# What our modules import of vLLM, imported without us. The platform stays undetermined: finding
# it out runs plugins.
import vllm.v1.core.block_pool, vllm.v1.core.kv_cache_coordinator
import vllm.v1.core.kv_cache_manager, vllm.v1.core.kv_cache_utils, vllm.v1.kv_cache_interface

def classes_and_modules():
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("vllm", "torch") and isinstance(module, types.ModuleType):
            yield name, module
            for attribute, value in list(vars(module).items()):
                if isinstance(value, type) and value.__module__ == name:
                    yield f"{name}.{attribute}", value

def picture():
    return {name: (thing, dict(vars(thing))) for name, thing in classes_and_modules()}

FILLED_BY_IMPORTS = ("__warningregistry__", "__abstractmethods__", "_abc_impl", "__doc__")

def differences(before):
    found = []
    for name, (thing, attributes) in before.items():
        now = vars(thing)
        for attribute, value in attributes.items():
            if attribute in FILLED_BY_IMPORTS:
                continue
            if attribute not in now:
                found.append(f"{name}.{attribute} is gone")
            elif now[attribute] is not value:
                found.append(f"{name}.{attribute} is another")
        for attribute in now.keys() - attributes.keys() - set(FILLED_BY_IMPORTS):
            value = now[attribute]
            owner = value.__name__ if isinstance(value, types.ModuleType) else getattr(
                value, "__module__", "")
            if str(owner).startswith("kvcached"):
                found.append(f"{name}.{attribute} is new, and ours")
    return found

"""

OURS = """
import kvcached_vllm
for module in pkgutil.iter_modules(kvcached_vllm.__path__):
    __import__(f"kvcached_vllm.{module.name}")
"""


def run(script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", COMPARE + script],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    found: list[str] = json.loads(line.removeprefix("FOUND "))
    return found


def test_importing_all_of_us_and_loading_the_plugins_assigns_to_nothing() -> None:
    # First everything without us, so that what vLLM's own modules do to each other as they are
    # imported is not held against us.
    script = (
        """
import vllm.v1.worker.cpu_worker, vllm.v1.worker.gpu_worker
import vllm.v1.core.sched.scheduler, vllm.v1.core.sched.async_scheduler
import vllm.platforms.cpu
import vllm.utils.cpu_resource_utils
import vllm.plugins
before = picture()
assert len(before) > 1000
"""
        + OURS
        + """
vllm.plugins.load_general_plugins()
print("FOUND " + json.dumps(differences(before)))
"""
    )
    allowed = {"vllm.plugins.plugins_loaded is another"}  # vLLM's own note that it has loaded
    assert set(run(script)) <= allowed


def test_the_comparison_sees_an_assignment() -> None:
    script = """
import vllm.v1.core.sched.scheduler
before = picture()
from vllm.v1.core.sched.scheduler import Scheduler
original = Scheduler.schedule
def schedule(self, *args):
    return original(self, *args)
Scheduler.schedule = schedule
vllm.v1.core.block_pool.BlockPool = type("BlockPool", (vllm.v1.core.block_pool.BlockPool,), {})
print("FOUND " + json.dumps(differences(before)))
"""
    assert set(run(script)) == {
        "vllm.v1.core.sched.scheduler.Scheduler.schedule is another",
        "vllm.v1.core.block_pool.BlockPool is another",
    }
