"""The engines that serve the two models."""

from __future__ import annotations

from demo.choices import CHOICES, VLLM
from demo.engine import Engine
from demo.machine import Machine
from demo.plan import Plan
from demo.sglang_engine import SglangEngine
from demo.vllm_engine import VllmEngine


def with_names(plan: Plan, choice: str) -> Plan:
    """The plan for servers that are called by their engines as well, unless vLLM serves alone: so
    that whatever shows a model shows its engine."""
    if choice == VLLM:
        return plan
    pairs = zip(plan.models, CHOICES[choice], strict=True)
    return plan.renamed(tuple(f"{model}-{engine}" for model, engine in pairs))


def engines_for(choice: str, machine: Machine) -> tuple[Engine, ...]:
    """The engines of the plan's models, in their order."""
    vllm, sglang = VllmEngine(machine.flags), SglangEngine()
    return tuple(vllm if each == VLLM else sglang for each in CHOICES[choice])


def label_of(engines: tuple[Engine, ...]) -> str:
    """What they are called together."""
    return " and ".join(dict.fromkeys(engine.name for engine in engines))
