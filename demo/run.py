"""One server's turn: start it, play the plan, watch its memory, stop it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from demo.machine import ELASTIC, VANILLA, Machine
from demo.memory import Meter, Sample, Sampler
from demo.plan import Burst
from demo.screen import Screen
from demo.server import Server, ServerOptions
from demo.workload import Answer, PlayedBurst, Workload

AFTER_LOAD_SECONDS = 1.0
"""How long after the last answer "after load" is read."""


class NotElastic(RuntimeError):
    """The server that should have an elastic KV cache runs without one."""


@dataclass(frozen=True)
class Setting:
    """What both turns have in common."""

    machine: Machine
    model: str
    flags: tuple[str, ...]
    plan: tuple[Burst, ...]
    logs: Path


@dataclass(frozen=True)
class Turn:
    """What one server did and held. Moments are seconds since the first request."""

    name: str
    answers: list[Answer]
    bursts: list[PlayedBurst]
    samples: list[Sample]
    seconds_to_ready: float
    tokens_per_second: float
    peak_bytes: int
    after_load_bytes: int


def run_vanilla(setting: Setting, screen: Screen) -> Turn:
    """vLLM as it is. Raises ServerFailed and RequestFailed."""
    screen.turn = "1 of 2: vanilla vLLM"
    with _started(setting, screen, "vanilla", VANILLA) as server:
        return _play(setting, screen, "vanilla", server, setting.machine.vanilla_meter(server))


def run_elastic(setting: Setting, screen: Screen, vanilla: Turn) -> Turn:
    """vLLM with kvcached. Raises NotElastic, ServerFailed and RequestFailed."""
    screen.turn = "2 of 2: vLLM with kvcached"
    screen.vanilla_bytes = vanilla.peak_bytes
    with _started(setting, screen, "elastic", ELASTIC) as server:
        if sign := setting.machine.why_not_elastic(server, vanilla.peak_bytes):
            screen.stopping()
            raise NotElastic(f"kvcached did not attach: {sign}; server log: {server.options.log}")
        return _play(setting, screen, "elastic", server, setting.machine.elastic_meter(server))


def _started(setting: Setting, screen: Screen, name: str, kvcached: dict[str, str]) -> Server:
    setting.machine.before_start()
    environment = {**setting.machine.environment, **kvcached}
    log = setting.logs / f"{name}.log"
    server = Server(ServerOptions(setting.model, setting.flags, environment, log))
    try:
        server.start(screen.starting)
    except BaseException:
        server.stop()
        raise
    screen.say(f"{screen.turn}: ready in {server.seconds_to_ready:.0f} s")
    return server


def _play(setting: Setting, screen: Screen, name: str, server: Server, meter: Meter) -> Turn:
    workload = Workload(setting.plan)
    with Sampler(meter) as sampler:
        screen.playing(workload, sampler)
        workload.play(server.url, server.served_model)
    screen.say(f"{screen.turn}: {workload.total} requests answered")
    screen.stopping()
    begin = workload.bursts[0].began
    last_answer = workload.bursts[-1].ended
    return Turn(
        name=name,
        answers=workload.answers,
        bursts=[burst.since(begin) for burst in workload.bursts],
        samples=[Sample(one.moment - begin, one.held_bytes) for one in sampler.samples],
        seconds_to_ready=server.seconds_to_ready,
        tokens_per_second=workload.tokens_per_second,
        peak_bytes=sampler.peak,
        after_load_bytes=sampler.at(last_answer + AFTER_LOAD_SECONDS),
    )
