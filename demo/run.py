"""One set-up's turn: start its two servers, play the plan, watch their memory, stop them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from demo import kvtop
from demo.budget import Budget
from demo.engine import Engine
from demo.engines import label_of
from demo.machine import Machine
from demo.memory import Meter, Sample, Sampler
from demo.outcome import Outcome
from demo.plan import Plan
from demo.screen import Screen
from demo.server import Server, ServerOptions, running
from demo.workload import Workload

STATIC = "static split"
SHARED = "shared"


class NotElastic(RuntimeError):
    """A server that should have an elastic KV cache runs without one."""


@dataclass(frozen=True)
class Setting:
    """What both set-ups have in common."""

    machine: Machine
    engines: tuple[Engine, ...]
    """Of the plan's models, in their order."""
    model: str
    flags: tuple[str, ...]
    """Those that the user gave."""
    plan: Plan
    budget: Budget
    logs: Path

    @property
    def label(self) -> str:
        """The engines, as a reader wants them called."""
        return label_of(self.engines)


def run_static(setting: Setting, screen: Screen) -> Outcome:
    """Vanilla engines, half of the budget each. Raises ServerFailed and RequestFailed."""
    screen.begin(f"1 of 2: static split, vanilla {setting.label}", setting.budget.shared)
    half = setting.budget.half
    environment = {"ENABLE_KVCACHED": "false"}
    with _servers(setting, screen, STATIC, half, lambda _: environment) as servers:
        meters = {one.served_model: setting.machine.fixed_meter(one, half) for one in servers}
        return _play(setting, screen, STATIC, servers, meters, lambda: None)


def run_shared(setting: Setting, screen: Screen) -> tuple[Outcome, Text | None]:
    """Engines with kvcached, one budget for both; and what kvtop showed in the middle.

    Raises NotElastic, ServerFailed and RequestFailed.
    """
    turn = f"2 of 2: one budget shared, {setting.label} with kvcached"
    screen.begin(turn, setting.budget.shared)
    frames: list[Text] = []

    def look(ledgers: Path) -> None:
        try:
            frames.append(kvtop.one_frame(ledgers))
        except kvtop.KvtopFailed as reason:
            screen.say(str(reason))

    with tempfile.TemporaryDirectory(prefix="kvcached-demo-", dir="/dev/shm") as folder:
        ledgers = Path(folder)

        def environment(model: str) -> dict[str, str]:
            return {
                "ENABLE_KVCACHED": "true",
                "KVCACHED_REQUIRED": "true",
                "KVCACHED_CAPACITY": str(setting.budget.shared),
                "KVCACHED_IPC_NAME": model,
                "KVCACHED_SHM_DIR": folder,
            }

        with _servers(setting, screen, SHARED, setting.budget.shared, environment) as servers:
            meters = {}
            for server in servers:
                meter = setting.machine.elastic_meter(server, ledgers)
                if not meter.attached():
                    raise NotElastic(
                        f"kvcached is not at work in the server of {server.served_model}; "
                        f"its log: {server.options.log}"
                    )
                meters[server.served_model] = meter
            outcome = _play(setting, screen, SHARED, servers, meters, lambda: look(ledgers))
    return outcome, frames[0] if frames else None


@contextmanager
def _servers(
    setting: Setting,
    screen: Screen,
    name: str,
    kv_bytes: int,
    environment: Callable[[str], Mapping[str, str]],
) -> Iterator[list[Server]]:
    options = [
        ServerOptions(
            engine=engine,
            model=setting.model,
            served_model=model,
            flags=(*engine.flags(kv_bytes, setting.budget), *setting.flags),
            environment={**engine.environment, **environment(model)},
            log=setting.logs / f"{name.replace(' ', '-')}-{model}.log",
        )
        for model, engine in zip(setting.plan.models, setting.engines, strict=True)
    ]
    try:
        with running(options, screen.starting) as servers:
            screen.ready()
            yield servers
            screen.stopping()
    finally:
        screen.stopped()


def _play(
    setting: Setting,
    screen: Screen,
    name: str,
    servers: Sequence[Server],
    meters: Mapping[str, Meter],
    in_the_middle: Callable[[], None],
) -> Outcome:
    workload = Workload(setting.plan)
    samplers = {model: Sampler(meter) for model, meter in meters.items()}
    with ExitStack() as stack:
        for sampler in samplers.values():
            stack.enter_context(sampler)
        screen.playing(workload, samplers)
        workload.play({one.served_model: one.url for one in servers}, in_the_middle)
    begin = workload.bursts[0].began
    return Outcome(
        name=name,
        answers=workload.answers,
        bursts=[burst.since(begin) for burst in workload.bursts],
        held={
            model: [Sample(one.moment - begin, one.held_bytes) for one in sampler.samples]
            for model, sampler in samplers.items()
        },
        tokens_per_second=workload.tokens_per_second,
    )
