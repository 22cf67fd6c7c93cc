"""The program in an engine's process for benchmarks.tokens_sglang.

Started with one argument, the order as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.solo_sglang import settings_of
from benchmarks.tokens_engine import requests


def main() -> None:
    order = json.loads(sys.argv[1])
    from sglang.srt.entrypoints.engine import Engine

    engine = Engine(**order["engine"])
    try:
        wanted = requests(order, engine.tokenizer_manager.model_config.vocab_size)
        tokens: list[list[int]] = []
        cached = 0
        size = -(-len(wanted) // order["waves"])
        for begin in range(0, len(wanted), size):
            wave = wanted[begin : begin + size]
            answers = engine.generate(
                input_ids=[prompt for prompt, _ in wave],
                sampling_params=[
                    {"temperature": 0, "max_new_tokens": length, "ignore_eos": True}
                    for _, length in wave
                ],
            )
            tokens += [list(answer["output_ids"]) for answer in answers]
            cached += sum(int(answer["meta_info"].get("cached_tokens", 0)) for answer in answers)
            if order["release"]:
                engine.release_memory_occupation()
                engine.resume_memory_occupation()
        facts = {"cached_tokens": cached, "settings": settings_of(engine)}
    finally:
        engine.shutdown()
    Path(order["report"]).write_text(json.dumps({"tokens": tokens, **facts}))


if __name__ == "__main__":
    main()
