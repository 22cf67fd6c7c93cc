"""Somebody listens to what an engine says of its cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from scenarios.greedy import first_tokens
from scenarios.prompts import mixed
from session import Session


def announced(session: Session, endpoint: str, requests: int = 40) -> dict[str, Any]:
    """Follow the events of a crowd, twice sent, and compare them with what the cache holds then."""
    import zmq

    context = zmq.Context()
    listener = context.socket(zmq.SUB)
    listener.connect(endpoint)
    listener.subscribe(b"")
    # Until the subscription has arrived, events are lost.
    _listen_until_heard(session, listener)

    prompts, lengths = mixed(requests, longest=400, most=100, crowd="announced")
    tokens = []
    for _ in range(2):
        tokens += first_tokens(session.greedy(prompts, lengths))
    events = _drain(listener)
    pool = _block_pool(session)
    # What happens between steps is told with the next one.
    known, stored = _follow((*events, *pool.kv_event_queue))
    held = _hashes(pool)
    session.llm.reset_prefix_cache()
    session.greedy(prompts[:1], [1])  # events go out with a step
    after = _drain(listener)
    context.destroy(linger=0)
    return {
        "tokens": tokens,
        "stored": stored,
        "removed": sum(len(each.block_hashes) for each in events if _is(each, "BlockRemoved")),
        "unknown_to_listener": len(held - known),
        "gone_unannounced": len(known - held),
        "held": len(held),
        "cleared": sum(_is(each, "AllBlocksCleared") for each in after),
    }


def _is(event: Any, name: str) -> bool:
    return type(event).__name__ == name


def _listen_until_heard(session: Session, listener: Any) -> None:
    for number in range(50):
        session.greedy([[number] * 65], [1])
        if listener.poll(200):
            break
    session.llm.reset_prefix_cache()
    session.greedy([[255]], [1])
    events = _drain(listener)
    assert any(_is(event, "AllBlocksCleared") for event in events)


def _drain(listener: Any) -> list[Any]:
    import msgspec
    from vllm.distributed.kv_events import KVEventBatch

    decoder = msgspec.msgpack.Decoder(type=KVEventBatch)
    events: list[Any] = []
    while listener.poll(1000):
        events += decoder.decode(listener.recv_multipart()[-1]).events
    return events


def _follow(events: Iterable[Any]) -> tuple[set[str], list[list[Any]]]:
    """What a listener knows to be in the cache after these events, and the tokens of the stored
    blocks in their order.

    vLLM may have a prefix in two blocks, and tells of each.
    """
    known: Counter[str] = Counter()
    stored: list[list[Any]] = []
    for event in events:
        if _is(event, "BlockStored"):
            known.update(_text(name, event) for name in event.block_hashes)
            stored.append([len(event.block_hashes), list(event.token_ids)])
        elif _is(event, "BlockRemoved"):
            known.subtract(_text(name, event) for name in event.block_hashes)
    return {name for name, times in known.items() if times > 0}, stored


def _text(name: Any, event: Any) -> str:
    return f"{event.group_idx or 0}:{name.hex() if isinstance(name, bytes) else name}"


def _block_pool(session: Session) -> Any:
    assert session.scheduler is not None
    return session.scheduler.kv_cache_manager.block_pool


def _hashes(pool: Any) -> set[str]:
    """What the scheduler would find now."""
    from vllm.v1.core.kv_cache_utils import (
        get_block_hash,
        get_group_id,
        maybe_convert_block_hash,
    )

    found = set()
    for key in pool.cached_block_hash_to_block._cache:
        name = maybe_convert_block_hash(get_block_hash(key))
        found.add(f"{get_group_id(key)}:{name.hex() if isinstance(name, bytes) else name}")
    return found
