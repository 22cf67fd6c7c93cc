"""The program in a client's process: puts requests to one server when they are due, whatever the
server does with those before, and notes when tokens come back.

Started with two arguments, the order's file and the file for what was seen. When it is ready it
says so in a line, and reads the moment to start, of time.time(), from its input. Each server has a
client of its own, so that one busy server delays nobody else's clock.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

#: Requests before the start, so that no first token waits for a kernel to be loaded.
_WARM_UP = 2
#: So much of a stream's end holds its last event, which says how many tokens there were.
_TAIL_BYTES = 1024
_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')


def body(generator: random.Random, order: dict[str, Any]) -> bytes:
    """One request's body: a prompt of random token ids."""
    prompt = generator.choices(range(3, order["vocabulary"]), k=order["prompt_tokens"])
    return json.dumps(
        {
            "model": order["model"],
            "prompt": prompt,
            "max_tokens": order["output_tokens"],
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()


async def ask(
    session: aiohttp.ClientSession, order: dict[str, Any], request: bytes, due: float
) -> dict[str, Any]:
    """One request, from when it is due (of time.time()) to its last token. Never raises."""
    await asyncio.sleep(max(0.0, due - time.time()))
    sent = time.time()
    first = last = None
    tail = b""
    error = None
    try:
        async with session.post(
            f"{order['url']}/v1/completions",
            data=request,
            headers={"Content-Type": "application/json"},
        ) as answer:
            if answer.status != 200:
                raise aiohttp.ClientError(f"status {answer.status}: {await answer.text()}")
            async for piece in answer.content.iter_any():
                last = time.time()
                first = first or last
                tail = (tail + piece)[-_TAIL_BYTES:]
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as failure:
        error = repr(failure)
    counted = _TOKENS.search(tail)
    tokens = int(counted.group(1)) if counted else 0
    if error is None and tokens != order["output_tokens"]:
        error = f"{tokens} tokens: {tail[-200:].decode(errors='replace')}"
    return {
        "due": due,
        "late": sent - due,
        "ttft": None if first is None else first - due,
        "tpot": None if first is None or last is None else (last - first) / max(1, tokens - 1),
        "tokens": tokens,
        "error": error,
    }


async def play(order: dict[str, Any]) -> list[dict[str, Any]]:
    generator = random.Random(order["seed"])
    requests = [body(generator, order) for _ in order["due"]]
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=order["patience"]),
        # A request that waits for a connection would look like one that waits in the server.
        connector=aiohttp.TCPConnector(limit=0),
    ) as session:
        for _ in range(_WARM_UP):
            await ask(session, order, body(generator, order), time.time())
        print("ready", flush=True)
        start = float(await asyncio.to_thread(sys.stdin.readline))
        return list(
            await asyncio.gather(
                *(
                    ask(session, order, request, start + moment)
                    for request, moment in zip(requests, order["due"], strict=True)
                )
            )
        )


if __name__ == "__main__":
    answers = asyncio.run(play(json.loads(Path(sys.argv[1]).read_text())))
    Path(sys.argv[2]).write_text(json.dumps(answers))
