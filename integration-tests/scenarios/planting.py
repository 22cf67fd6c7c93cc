"""Errors planted in an engine, for the sanity check to find, and a look at what it fills."""

from __future__ import annotations

from typing import Any

from scenarios.prompts import prompt
from session import Session


def look_at_unwritten_memory(session: Session) -> dict[str, Any]:
    """Read block 1 before any request: it is committed with block 0, and nobody wrote there."""
    layers = session.worker.model_runner.kv_caches
    values = {float(value) for layer in layers for value in layer[1].unique()}
    return {"values": sorted(values)}


def plan_with_an_absent_block(session: Session) -> dict[str, Any]:
    """Hand the worker a plan of the scheduler's own in which one block is another."""
    scheduler = session.scheduler
    assert scheduler is not None
    for name in ("innocent", "victim"):
        request = {"prompt_token_ids": prompt(name, 40)}
        session.engine.add_request(name, request, session.greedy_parameters(32))
    plan = scheduler.schedule()
    planned = {request.req_id: request for request in plan.scheduled_new_reqs}
    victim = next(request for name, request in planned.items() if name.startswith("victim"))
    absent = scheduler.kv_cache_config.num_blocks - 1
    victim.block_ids[0][-1] = absent
    print(f"planted block {absent}", flush=True)
    session.engine.model_executor.execute_model(plan)
    return {}
