"""The program in an engine's process for benchmarks.tokens.

Started with one argument, the order as JSON.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHORTEST = 8
#: Requests that begin with the same tokens.
GROUP = 8


def requests(order: dict[str, Any], vocabulary: int) -> list[tuple[list[int], int]]:
    """(prompt, output tokens) of every request. In groups of eight, the first half of each prompt
    is the group's; every other group repeats a phrase, for speculation to find."""
    generator = random.Random(20)
    made: list[tuple[list[int], int]] = []
    while len(made) < order["requests"]:
        half = order["prompt_tokens"] // 2
        shared = [generator.randrange(3, vocabulary) for _ in range(half)]
        if len(made) // GROUP % 2:
            shared = (shared[:10] * half)[:half]
        for _ in range(GROUP):
            own = generator.randint(SHORTEST, half)
            prompt = shared + [generator.randrange(3, vocabulary) for _ in range(own)]
            made.append((prompt, generator.randint(SHORTEST, order["output_tokens"])))
    return made[: order["requests"]]


@dataclass
class Steps:
    """What an engine did step by step: engines with the same digest put the same requests, as far
    on as each other, into every batch."""

    digest: Any = field(default_factory=hashlib.sha256)
    #: Requests that each step added to those that run; less than none where it preempted.
    admissions: list[int] = field(default_factory=list)
    started: int = 0

    def note(self, scheduler: Any, finished: int) -> None:
        """Called after a step, with how many requests are done since the engine's start."""
        running, waiting = scheduler.get_request_counts()
        computed = sum(request.num_computed_tokens for request in scheduler.running)
        self.digest.update(f"{running} {waiting} {computed};".encode())
        self.admissions.append(finished + running - self.started)
        self.started = finished + running


def generate(
    engine: Any, scheduler: Any, wanted: list[tuple[list[int], int]], steps: Steps
) -> list[list[int]]:
    """Every request's tokens."""
    from vllm import SamplingParams

    for number, (prompt, tokens) in enumerate(wanted):
        sampling = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        engine.add_request(str(number), {"prompt_token_ids": prompt}, sampling)
    answers: dict[str, list[int]] = {}
    before = steps.started
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                answers[output.request_id] = list(output.outputs[0].token_ids)
        steps.note(scheduler, before + len(answers))
    return [answers[str(number)] for number in range(len(wanted))]


def limit_blocks(order: dict[str, Any]) -> int | None:
    """Blocks that an elastic engine may have at most; None for a vanilla one."""
    if order["rows"] is None:
        return None
    from kvcached import _C

    path = min(Path(order["rows"]).glob(f"kvcached_{order['group']}-*.row"))
    row = _C.Row.attach(str(path)).describe()
    extents = row["limit_bytes"] // row["extent_bytes"]
    return int(min(row["num_blocks"], extents * row["blocks_per_extent"] or row["num_blocks"]))


def main() -> None:
    order = json.loads(sys.argv[1])
    from vllm import LLM

    if order["admissions"] is not None:
        from benchmarks import replay

        replay.replay(order["admissions"])
        order["engine"]["scheduler_cls"] = replay.of(order["scheduler"])
    llm = LLM(**order["engine"])
    engine = llm.llm_engine
    # In one process; there is no public way to it.
    scheduler = engine.engine_core.engine_core.scheduler
    steps = Steps()
    wanted = requests(order, llm.llm_engine.vllm_config.model_config.get_vocab_size())
    parts = len(order["sleep"]) + 1
    size = -(-len(wanted) // parts)
    tokens: list[list[int]] = []
    for part in range(parts):
        if part:
            llm.sleep(level=order["sleep"][part - 1])
            llm.wake_up()
            if order["sleep"][part - 1] == 2:
                # Level 2 has thrown the weights away.
                llm.collective_rpc("reload_weights")
        tokens += generate(engine, scheduler, wanted[part * size : (part + 1) * size], steps)
    Path(order["report"]).write_text(
        json.dumps(
            {
                "tokens": tokens,
                "scheduler": type(scheduler).__name__,
                "steps": steps.digest.hexdigest(),
                "preemptions": sum(added < 0 for added in steps.admissions),
                "admissions": steps.admissions,
                "limit_blocks": limit_blocks(order),
            }
        )
    )
    # In one process nobody else does.
    engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
