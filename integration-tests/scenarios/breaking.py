"""Reads of KV memory behind the engine's back. One of them should end the process."""

from __future__ import annotations

from typing import Any

from session import Session


def touch_committed_block(session: Session) -> dict[str, Any]:
    """Read block 0, which always has memory."""
    return {"sum": _read_block(session, 0)}


def touch_uncommitted_block(session: Session) -> dict[str, Any]:
    """Read the last block. Nobody uses it, and the lowest extents are filled first."""
    print("touching the last block", flush=True)
    return {"sum": _read_block(session, -1)}


def _read_block(session: Session, block: int) -> float:
    # Per layer, indexed by block first: how vLLM's CPU runner keeps its tensors.
    layers = session.worker.model_runner.kv_caches
    return sum(float(layer[block].double().sum()) for layer in layers)
